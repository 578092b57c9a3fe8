//! Types as they come, as they are stored, and as record batches have them.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, UnionFields};

use super::TableOptions;

const EXTENSION: &str = "ARROW:extension:name";

/// The field as it is stored: without views, unless they are asked for or an extension's storage.
pub(super) fn stored(field: &Field, options: TableOptions) -> Field {
    map_field(field, &|field| match field.data_type() {
        DataType::Utf8View if straightens(field, options) => Some(DataType::LargeUtf8),
        DataType::BinaryView if straightens(field, options) => Some(DataType::LargeBinary),
        _ => None,
    })
}

fn straightens(field: &Field, options: TableOptions) -> bool {
    !options.views && !field.metadata().contains_key(EXTENSION)
}

/// The field as record batches have it: with keys for dictionaries.
pub(super) fn encoded(field: &Field) -> Field {
    map_field(field, &|field| match field.data_type() {
        DataType::Dictionary(key, _) => Some(key.as_ref().clone()),
        _ => None,
    })
}

fn map_field(field: &Field, change: &impl Fn(&Field) -> Option<DataType>) -> Field {
    let child = |child: &FieldRef| Arc::new(map_field(child, change));
    let data_type = change(field).unwrap_or_else(|| match field.data_type() {
        DataType::List(item) => DataType::List(child(item)),
        DataType::LargeList(item) => DataType::LargeList(child(item)),
        DataType::ListView(item) => DataType::ListView(child(item)),
        DataType::LargeListView(item) => DataType::LargeListView(child(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(child(item), *size),
        DataType::Map(entries, sorted) => DataType::Map(child(entries), *sorted),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(child).collect::<Fields>()),
        DataType::Union(fields, mode) => {
            let fields = fields.iter().map(|(id, field)| (id, child(field)));
            DataType::Union(fields.collect::<UnionFields>(), *mode)
        }
        DataType::RunEndEncoded(ends, values) => {
            DataType::RunEndEncoded(Arc::clone(ends), child(values))
        }
        DataType::Dictionary(key, values) => {
            let values = map_field(&Field::new("", values.as_ref().clone(), true), change);
            DataType::Dictionary(key.clone(), Box::new(values.data_type().clone()))
        }
        other => other.clone(),
    });
    field.clone().with_data_type(data_type)
}

/// Whether the encoder does not write arrays of the type as they should be.
pub(super) fn needs_preparing(data_type: &DataType) -> bool {
    let itself = matches!(
        data_type,
        DataType::Dictionary(..)
            | DataType::Utf8View
            | DataType::BinaryView
            | DataType::ListView(_)
            | DataType::LargeListView(_)
            | DataType::Union(..)
            | DataType::RunEndEncoded(..)
    );
    let inside = |field: &FieldRef| needs_preparing(field.data_type());
    itself || children(data_type).iter().any(inside)
}

/// Whether there are dictionaries in the type.
pub(super) fn has_dictionary(data_type: &DataType) -> bool {
    let inside = |field: &FieldRef| has_dictionary(field.data_type());
    matches!(data_type, DataType::Dictionary(..)) || children(data_type).iter().any(inside)
}

/// The fields of a nested type's children, in their order.
pub(super) fn children(data_type: &DataType) -> Vec<FieldRef> {
    match data_type {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => vec![Arc::clone(item)],
        DataType::Struct(fields) => fields.to_vec(),
        DataType::Union(fields, _) => fields.iter().map(|(_, field)| Arc::clone(field)).collect(),
        DataType::RunEndEncoded(ends, values) => vec![Arc::clone(ends), Arc::clone(values)],
        _ => Vec::new(),
    }
}
