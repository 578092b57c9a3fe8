//! TPC-H query 1, the pricing summary, over rows of lineitem as an Arrow table.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use theus::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use theus::arrow::compute::{CastOptions, cast_with_options};
use theus::arrow::datatypes::{DataType, Date32Type, Decimal128Type};
use theus::worker::{Context, Handle, Result, TaskError};

/// 1998-12-01 less 90 days, in days since 1970.
const LAST_SHIPPED: i32 = 10_471;
/// So many rows at a time, by one thread: sums of these fit into 64 bits.
const ROWS: usize = 1 << 16;

/// Prices up to a hundred million, so that sums of so many charged ones fit into 64 bits.
const MAX_PRICE: u128 = 10_000_000_000;
/// What cannot be cast is an error, not a null.
const CAST: CastOptions<'static> = CastOptions {
    safe: false,
    format_options: theus::arrow::util::display::FormatOptions::new(),
};

#[derive(Deserialize)]
pub(crate) struct Rows {
    /// A table, or a slice of one.
    lineitem: Handle,
}

/// Sums of a group, in units of the last decimal: hundredths, but for what is discounted (10^-4) and
/// charged (10^-6). Sums of several parts of a table are to be added.
#[derive(Default, Clone, Copy)]
struct Sums {
    quantity: i128,
    price: i128,
    discounted: i128,
    charged: i128,
    discount: i128,
    count: u64,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.quantity += other.quantity;
        self.price += other.price;
        self.discounted += other.discounted;
        self.charged += other.charged;
        self.discount += other.discount;
        self.count += other.count;
    }
}

/// Return flag and line status, each a letter.
type Groups = BTreeMap<(u8, u8), Sums>;

/// A group as it goes to the caller: sums as decimal texts, which are exact in any language.
#[derive(Serialize)]
pub(crate) struct Group {
    flag: char,
    status: char,
    quantity: String,
    price: String,
    discounted: String,
    charged: String,
    discount: String,
    count: u64,
}

pub(crate) fn query1(ctx: &Context<'_>) -> Result<Vec<Group>> {
    let Rows { lineitem } = ctx.input()?;
    let batches = ctx.open(&lineitem)?.batches()?;
    let pieces: Vec<RecordBatch> = batches
        .iter()
        .flat_map(|batch| {
            let starts = (0..batch.num_rows()).step_by(ROWS);
            starts.map(|start| batch.slice(start, ROWS.min(batch.num_rows() - start)))
        })
        .collect();
    let groups = pieces
        .par_iter()
        .map(sums_of)
        .try_reduce(Groups::new, |mut all, some| {
            for (key, sums) in some {
                all.entry(key).or_default().add(&sums);
            }
            Ok(all)
        })?;
    Ok(groups.into_iter().map(group).collect())
}

/// The groups of a few rows.
fn sums_of(rows: &RecordBatch) -> Result<Groups> {
    let shipped = column(rows, "l_shipdate", &DataType::Date32)?;
    let shipped = shipped.as_primitive::<Date32Type>().values();
    let money = |name| {
        let column = column(rows, name, &DataType::Decimal128(15, 2))?;
        Ok::<_, TaskError>(column.as_primitive::<Decimal128Type>().values().clone())
    };
    let (quantity, price) = (money("l_quantity")?, money("l_extendedprice")?);
    let (discount, tax) = (money("l_discount")?, money("l_tax")?);
    // Texts come as they were put, as dictionaries too; what were views has offsets of 64 bits.
    let flags = column(rows, "l_returnflag", &DataType::LargeUtf8)?;
    let states = column(rows, "l_linestatus", &DataType::LargeUtf8)?;
    let (flags, states) = (letters(flags.as_ref())?, letters(states.as_ref())?);

    if price.iter().any(|price| price.unsigned_abs() > MAX_PRICE) {
        return Err(TaskError::new(
            "query1",
            "a price is too high to be summed here",
        ));
    }

    let mut known: Vec<((u8, u8), [i64; 6])> = Vec::new();
    for row in 0..rows.num_rows() {
        if shipped[row] > LAST_SHIPPED {
            continue;
        }
        let key = (flags[row], states[row]);
        let place = known.iter().position(|(other, _)| *other == key);
        let place = place.unwrap_or_else(|| {
            known.push((key, [0; 6]));
            known.len() - 1
        });
        let sums = &mut known[place].1;
        let (price, discount) = (price[row] as i64, discount[row] as i64);
        let discounted = price * (100 - discount);
        sums[0] += quantity[row] as i64;
        sums[1] += price;
        sums[2] += discounted;
        sums[3] += discounted * (100 + tax[row] as i64);
        sums[4] += discount;
        sums[5] += 1;
    }
    let wide = |[quantity, price, discounted, charged, discount, count]: [i64; 6]| Sums {
        quantity: quantity.into(),
        price: price.into(),
        discounted: discounted.into(),
        charged: charged.into(),
        discount: discount.into(),
        count: count.unsigned_abs(),
    };
    Ok(known
        .into_iter()
        .map(|(key, sums)| (key, wide(sums)))
        .collect())
}

/// A column without nulls, of this type: as it lies there, unless it has another that can be cast.
fn column(rows: &RecordBatch, name: &str, kind: &DataType) -> Result<ArrayRef> {
    let found = rows.column_by_name(name);
    let found = found.ok_or_else(|| TaskError::new("query1", format!("no column {name}")))?;
    if found.null_count() > 0 {
        return Err(TaskError::new("query1", format!("{name} has nulls")));
    }
    Ok(match found.data_type() {
        same if same == kind => found.clone(),
        _ => cast_with_options(found, kind, &CAST)?,
    })
}

/// The bytes of texts of one letter each.
fn letters(texts: &dyn Array) -> Result<&[u8]> {
    let texts = texts.as_string::<i64>();
    let offsets = texts.value_offsets();
    let (first, last) = (offsets[0] as usize, offsets[texts.len()] as usize);
    if offsets.windows(2).any(|pair| pair[1] - pair[0] != 1) {
        return Err(TaskError::new("query1", "a flag is not one letter"));
    }
    Ok(&texts.value_data()[first..last])
}

fn group(((flag, status), sums): ((u8, u8), Sums)) -> Group {
    Group {
        flag: flag.into(),
        status: status.into(),
        quantity: decimal(sums.quantity, 2),
        price: decimal(sums.price, 2),
        discounted: decimal(sums.discounted, 4),
        charged: decimal(sums.charged, 6),
        discount: decimal(sums.discount, 2),
        count: sums.count,
    }
}

/// `value` units of the last of so many decimals.
fn decimal(value: i128, decimals: u32) -> String {
    let unit = 10_i128.pow(decimals);
    let sign = if value < 0 { "-" } else { "" };
    let (whole, rest) = (value.abs() / unit, value.abs() % unit);
    format!("{sign}{whole}.{rest:0width$}", width = decimals as usize)
}
