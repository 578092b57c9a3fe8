//! Schemas: types that exist, with the parameters and children that they have.

use arrow_ipc::{
    DateUnit, Endianness, Field, IntervalUnit, Precision, Schema, TimeUnit, Type, UnionMode,
};

use super::Finding;

const MAX_DEPTH: usize = 64;

/// Checks every field of a schema.
pub(in super::super) fn check_schema(schema: &Schema<'_>) -> Finding<()> {
    if schema.endianness() != Endianness::Little {
        return Err("its schema: it is not little endian".to_owned());
    }
    let fields = schema.fields().ok_or("its schema has no fields")?;
    for (place, field) in fields.iter().enumerate() {
        let path = field
            .name()
            .map_or_else(|| format!("#{place}"), |name| format!("{name:?}"));
        check_field(&field, 0).map_err(|reason| format!("its schema, column {path}: {reason}"))?;
    }
    Ok(())
}

fn check_field(field: &Field<'_>, depth: usize) -> Finding<()> {
    if depth > MAX_DEPTH {
        return Err(format!("it is nested deeper than {MAX_DEPTH} levels"));
    }
    if let Some(dictionary) = field.dictionary() {
        let index = dictionary
            .indexType()
            .ok_or("its dictionary has no type of keys")?;
        check_width(index.bitWidth())?;
    }
    check_type(field)?;
    let children = field.children();
    let count = children.map_or(0, |children| children.len());
    let expected = match field.type_type() {
        Type::List
        | Type::LargeList
        | Type::ListView
        | Type::LargeListView
        | Type::FixedSizeList
        | Type::Map => Some(1),
        Type::RunEndEncoded => Some(2),
        Type::Struct_ | Type::Union => None,
        _ => Some(0),
    };
    if children.is_none() && expected != Some(0) {
        return Err("it has no list of children".to_owned());
    }
    if expected.is_some_and(|expected| expected != count) {
        return Err(format!("a {:?} with {count} children", field.type_type()));
    }
    for child in children.into_iter().flatten() {
        let name = child.name().unwrap_or_default();
        check_field(&child, depth + 1).map_err(|reason| format!("child {name:?}: {reason}"))?;
    }
    match field.type_type() {
        Type::Map => check_entries(field),
        Type::RunEndEncoded => check_run_ends(field),
        Type::Union => check_union(field, count),
        _ => Ok(()),
    }
}

fn check_width(bits: i32) -> Finding<()> {
    if matches!(bits, 8 | 16 | 32 | 64) {
        Ok(())
    } else {
        Err(format!("there are no integers of {bits} bits"))
    }
}

fn check_type(field: &Field<'_>) -> Finding<()> {
    let missing = || format!("its type {:?} is not there", field.type_type());
    match field.type_type() {
        Type::Null
        | Type::Bool
        | Type::Utf8
        | Type::Binary
        | Type::LargeUtf8
        | Type::LargeBinary
        | Type::Utf8View
        | Type::BinaryView
        | Type::List
        | Type::LargeList
        | Type::ListView
        | Type::LargeListView
        | Type::Struct_
        | Type::RunEndEncoded => Ok(()),
        Type::Int => check_width(field.type_as_int().ok_or_else(missing)?.bitWidth()),
        Type::FloatingPoint => {
            let precision = field
                .type_as_floating_point()
                .ok_or_else(missing)?
                .precision();
            let known = [Precision::HALF, Precision::SINGLE, Precision::DOUBLE];
            known_or(known.contains(&precision), || {
                format!("floats of {precision:?}")
            })
        }
        Type::Decimal => check_decimal(field),
        Type::FixedSizeBinary => {
            let width = field
                .type_as_fixed_size_binary()
                .ok_or_else(missing)?
                .byteWidth();
            known_or(width >= 0, || format!("binaries of {width} bytes"))
        }
        Type::FixedSizeList => {
            let size = field
                .type_as_fixed_size_list()
                .ok_or_else(missing)?
                .listSize();
            known_or(size >= 0, || format!("lists of {size} items"))
        }
        Type::Map => field.type_as_map().map(drop).ok_or_else(missing),
        Type::Union => field.type_as_union().map(drop).ok_or_else(missing),
        Type::Date | Type::Time | Type::Timestamp | Type::Duration | Type::Interval => {
            check_time(field)
        }
        other => Err(format!("there is no type {other:?}")),
    }
}

fn known_or(known: bool, otherwise: impl FnOnce() -> String) -> Finding<()> {
    if known {
        Ok(())
    } else {
        Err(format!("there are no {}", otherwise()))
    }
}

fn check_decimal(field: &Field<'_>) -> Finding<()> {
    let decimal = field
        .type_as_decimal()
        .ok_or("its decimal type is not there")?;
    let (bits, precision, scale) = (decimal.bitWidth(), decimal.precision(), decimal.scale());
    let most = match bits {
        32 => 9,
        64 => 18,
        128 => 38,
        256 => 76,
        _ => return Err(format!("there are no decimals of {bits} bits")),
    };
    let fits = (1..=most).contains(&precision) && (-most..=most).contains(&scale);
    known_or(fits, || {
        format!("decimals of {bits} bits with precision {precision}, scale {scale}")
    })
}

fn check_time(field: &Field<'_>) -> Finding<()> {
    let units = [
        TimeUnit::SECOND,
        TimeUnit::MILLISECOND,
        TimeUnit::MICROSECOND,
        TimeUnit::NANOSECOND,
    ];
    let coarse = [TimeUnit::SECOND, TimeUnit::MILLISECOND];
    let known = match field.type_type() {
        Type::Date => field.type_as_date().map(|date| {
            let unit = date.unit();
            unit == DateUnit::DAY || unit == DateUnit::MILLISECOND
        }),
        Type::Time => field.type_as_time().map(|time| {
            let bits = if coarse.contains(&time.unit()) {
                32
            } else {
                64
            };
            units.contains(&time.unit()) && time.bitWidth() == bits
        }),
        Type::Timestamp => field
            .type_as_timestamp()
            .map(|at| units.contains(&at.unit())),
        Type::Duration => field
            .type_as_duration()
            .map(|took| units.contains(&took.unit())),
        _ => field.type_as_interval().map(|interval| {
            let units = [
                IntervalUnit::YEAR_MONTH,
                IntervalUnit::DAY_TIME,
                IntervalUnit::MONTH_DAY_NANO,
            ];
            units.contains(&interval.unit())
        }),
    };
    known_or(known == Some(true), || {
        format!("{:?}s of this unit", field.type_type())
    })
}

fn check_entries(field: &Field<'_>) -> Finding<()> {
    let entries = field.children().map(|children| children.get(0));
    let entries = entries.ok_or("a map without entries")?;
    let pairs = entries.children().map_or(0, |children| children.len());
    if entries.type_type() != Type::Struct_ || entries.dictionary().is_some() || pairs != 2 {
        return Err("the entries of a map are not pairs".to_owned());
    }
    Ok(())
}

fn check_run_ends(field: &Field<'_>) -> Finding<()> {
    let ends = field.children().map(|children| children.get(0));
    let ends = ends.filter(|ends| ends.dictionary().is_none());
    let ends = ends.and_then(|ends| ends.type_as_int());
    let known =
        ends.is_some_and(|ends| ends.is_signed() && matches!(ends.bitWidth(), 16 | 32 | 64));
    known_or(known, || "run ends of this type".to_owned())
}

fn check_union(field: &Field<'_>, children: usize) -> Finding<()> {
    let union = field.type_as_union().ok_or("its union type is not there")?;
    if ![UnionMode::Sparse, UnionMode::Dense].contains(&union.mode()) {
        return Err(format!("there are no unions of mode {:?}", union.mode()));
    }
    let mut seen = [false; 128];
    let ids: Vec<i32> = match union.typeIds() {
        Some(ids) => ids.iter().collect(),
        None => (0..).take(children).collect(),
    };
    if ids.len() != children || children == 0 {
        return Err(format!(
            "a union of {children} children with {} type ids",
            ids.len()
        ));
    }
    for id in ids {
        let place = usize::try_from(id).ok().and_then(|id| seen.get_mut(id));
        match place {
            Some(seen) if !*seen => *seen = true,
            Some(_) => return Err(format!("its type id {id} stands twice")),
            None => return Err(format!("its type id {id} is not between 0 and 127")),
        }
    }
    Ok(())
}
