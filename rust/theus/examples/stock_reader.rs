//! Reads a live segment's table with arrow-ipc and memmap2 alone: nothing of this crate is needed.
//!
//! ```sh
//! cargo run --example stock_reader -- /dev/shm/theus-<session>-<n>
//! ```

use std::error::Error;
use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow_ipc::convert::fb_to_schema;
use arrow_ipc::reader::{FileDecoder, read_footer_length};
use arrow_ipc::{Block, root_as_footer};
use memmap2::Mmap;

/// The batches of an Arrow IPC file, over its mapped bytes.
///
/// # Errors
/// If it is none.
pub(crate) fn read(path: &str) -> Result<Vec<RecordBatch>, Box<dyn Error>> {
    #[expect(unsafe_code, reason = "a mapping of a file that others could change")]
    // SAFETY: a published segment does not change.
    let mapping = unsafe { Mmap::map(&File::open(path)?) }?;
    let (start, length) = (NonNull::from(&mapping[0]), mapping.len());
    #[expect(unsafe_code, reason = "the mapping becomes a buffer")]
    // SAFETY: the range is the mapping's, which the buffer keeps.
    let file = unsafe { Buffer::from_custom_allocation(start, length, Arc::new(mapping)) };
    let trailer = file.len() - 10;
    let footer = trailer - read_footer_length(file[trailer..].try_into()?)?;
    let footer = root_as_footer(&file[footer..trailer])?;
    let schema = Arc::new(fb_to_schema(footer.schema().ok_or("no schema")?));
    let mut decoder = FileDecoder::new(schema, footer.version()).with_require_alignment(true);
    for block in footer.dictionaries().into_iter().flatten() {
        decoder.read_dictionary(block, &message(&file, block))?;
    }
    let blocks = footer.recordBatches().into_iter().flatten();
    let batches = blocks.filter_map(|block| {
        let batch = decoder.read_record_batch(block, &message(&file, block));
        batch.transpose()
    });
    Ok(batches.collect::<Result<_, _>>()?)
}

fn message(file: &Buffer, block: &Block) -> Buffer {
    let length = i64::from(block.metaDataLength()) + block.bodyLength();
    let place = |value: i64| usize::try_from(value).unwrap_or(0);
    file.slice_with_length(place(block.offset()), place(length))
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args()
        .nth(1)
        .ok_or("usage: stock_reader <path>")?;
    for batch in read(&path)? {
        println!("{} rows of {}", batch.num_rows(), batch.schema());
    }
    Ok(())
}
