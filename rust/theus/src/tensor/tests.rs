use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};

use super::*;
use crate::layout::tensor::Order;

const ITEMS: u32 = 24;
const START: i64 = 4096;

/// A tensor of the numbers from 0 on, behind a page that is not its own.
fn base() -> Tensor<u32> {
    let file = File::from(memfd_create("base", MemfdFlags::CLOEXEC).unwrap());
    let items: Vec<u8> = (0..ITEMS).flat_map(u32::to_ne_bytes).collect();
    file.write_all_at(&items, 4096).unwrap();
    let mapping = Mapping::writable(&file, 4096 + items.len()).unwrap();
    let spec = TensorSpec::dense("base", ElementType::U32, &[ITEMS.into()], Order::C).unwrap();
    Tensor::new(Arc::new(mapping), &spec, 4096)
}

/// The items of a view by the rule itself: bytes from the start, one dimension after the other.
fn items(place: &Place) -> Option<Vec<u32>> {
    let mut offsets = vec![i64::try_from(place.start).ok()?];
    for (&size, &stride) in place.shape.iter().zip(&place.strides) {
        let steps = 0..i64::try_from(size).ok()?;
        let steps: Vec<i64> = steps.map(|step| step * stride).collect();
        let reached = offsets
            .iter()
            .flat_map(|offset| steps.iter().map(move |step| offset + step));
        offsets = reached.collect();
    }
    let item = |offset: i64| {
        let at = offset - START;
        let inside = (0..i64::from(ITEMS) * 4).contains(&at) && at % 4 == 0;
        inside.then(|| u32::try_from(at / 4).unwrap_or(u32::MAX))
    };
    offsets.into_iter().map(item).collect()
}

#[test]
fn a_view_shows_what_its_strides_say_or_is_refused() {
    let tensor = base();
    let (mut shown, mut refused) = (0, 0);
    let strides = [-12, -4, 0, 4, 8, 6, 20];
    for start in [START - 4, START, START + 8, START + 92, START + 96] {
        for (rows, columns) in [(1, 1), (2, 3), (3, 2), (0, 4), (5, 5)] {
            for row_stride in strides {
                for column_stride in strides {
                    let place = Place {
                        start: usize::try_from(start).unwrap(),
                        shape: vec![rows, columns],
                        strides: vec![row_stride, column_stride],
                    };
                    let at = tensor.clone().at(place.clone());
                    let Some(expected) = items(&place) else {
                        refused += 1;
                        assert!(matches!(at, Err(Error::CorruptSegment { .. })), "{place:?}");
                        continue;
                    };
                    // Where nothing lies need not be a place.
                    if rows == 0 && at.is_err() {
                        continue;
                    }
                    shown += 1;
                    let view = at.unwrap_or_else(|error| panic!("{place:?}: {error}"));
                    let seen: Vec<u32> = view.view().iter().copied().collect();
                    assert_eq!(seen, expected, "{place:?}");
                    if let Some(slice) = view.as_slice() {
                        assert_eq!(slice, expected, "{place:?}");
                    }
                    assert_eq!(view.array::<ndarray::Ix2>().unwrap().dim().0 as u64, rows);
                    assert!(view.array::<ndarray::Ix1>().is_err());
                }
            }
        }
    }
    assert!(
        shown > 100 && refused > 100,
        "{shown} shown, {refused} refused"
    );
}

#[test]
fn sizes_that_overflow_are_refused() {
    let tensor = base();
    let huge = u64::MAX;
    for (shape, strides) in [
        (vec![huge], vec![0]),
        (vec![huge, huge], vec![0, 0]),
        (vec![2], vec![i64::MIN]),
        (vec![2], vec![i64::MAX]),
        (vec![3, 3], vec![i64::MAX / 2, i64::MAX / 2]),
        (vec![2], vec![]),
    ] {
        let place = Place {
            start: 4096,
            shape,
            strides,
        };
        assert!(tensor.clone().at(place.clone()).is_err(), "{place:?}");
    }
}

#[test]
fn a_shape_is_what_was_asked_for_or_an_error_that_shows_both() {
    let tensor = base();
    assert!(tensor.clone().with_shape(&[Some(24)]).is_ok());
    assert!(tensor.clone().with_shape(&[None]).is_ok());
    let error = tensor.with_shape(&[None, Some(3)]).unwrap_err().to_string();
    assert!(error.contains("[24], not (_, 3)"), "{error}");
}

#[test]
fn numpys_bools_and_times_are_integers_here() {
    assert!(is_dtype_of::<u8>("|b1") && is_dtype_of::<u8>("|u1"));
    assert!(is_dtype_of::<i64>("<M8[D]") && is_dtype_of::<i64>("<m8[ns]"));
    assert!(is_dtype_of::<f32>("<f4"));
    assert!(!is_dtype_of::<f32>(">f4") && !is_dtype_of::<i8>("|b1"));
    assert!(!is_dtype_of::<u64>("<M8[D]"));
}
