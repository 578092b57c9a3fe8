//! Integers of 128 bits in results: as what they are, if 64 bits hold them, and an error if not.
//!
//! `MessagePack` has no wider integers, and its serializer would write them as bytes. So this one stands
//! before it, and before each value inside of another.

use serde::ser::{
    Error, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant,
    SerializeTuple, SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

/// A value, at any depth of which integers are narrowed.
pub(super) struct Narrow<'a, T: ?Sized>(pub(super) &'a T);

impl<T: Serialize + ?Sized> Serialize for Narrow<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(Narrowing(serializer))
    }
}

struct Narrowing<S>(S);

/// A list, a map and the like on its way.
struct Parts<S>(S);

fn too_wide<E: Error>(value: impl std::fmt::Display) -> E {
    E::custom(format!("{value} has more than 64 bits: write it as text"))
}

macro_rules! as_it_is {
    ($($method:ident($($name:ident: $kind:ty),*)),* $(,)?) => {$(
        fn $method(self, $($name: $kind),*) -> Result<S::Ok, S::Error> {
            self.0.$method($($name),*)
        }
    )*};
}

impl<S: Serializer> Serializer for Narrowing<S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Parts<S::SerializeSeq>;
    type SerializeTuple = Parts<S::SerializeTuple>;
    type SerializeTupleStruct = Parts<S::SerializeTupleStruct>;
    type SerializeTupleVariant = Parts<S::SerializeTupleVariant>;
    type SerializeMap = Parts<S::SerializeMap>;
    type SerializeStruct = Parts<S::SerializeStruct>;
    type SerializeStructVariant = Parts<S::SerializeStructVariant>;

    as_it_is! {
        serialize_bool(value: bool),
        serialize_i8(value: i8),
        serialize_i16(value: i16),
        serialize_i32(value: i32),
        serialize_i64(value: i64),
        serialize_u8(value: u8),
        serialize_u16(value: u16),
        serialize_u32(value: u32),
        serialize_u64(value: u64),
        serialize_f32(value: f32),
        serialize_f64(value: f64),
        serialize_char(value: char),
        serialize_str(value: &str),
        serialize_bytes(value: &[u8]),
        serialize_none(),
        serialize_unit(),
        serialize_unit_struct(name: &'static str),
        serialize_unit_variant(name: &'static str, index: u32, variant: &'static str),
    }

    fn serialize_i128(self, value: i128) -> Result<S::Ok, S::Error> {
        match (i64::try_from(value), u64::try_from(value)) {
            (Ok(value), _) => self.0.serialize_i64(value),
            (_, Ok(value)) => self.0.serialize_u64(value),
            _ => Err(too_wide(value)),
        }
    }

    fn serialize_u128(self, value: u128) -> Result<S::Ok, S::Error> {
        match u64::try_from(value) {
            Ok(value) => self.0.serialize_u64(value),
            Err(_) => Err(too_wide(value)),
        }
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.0.serialize_some(&Narrow(value))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.0.serialize_newtype_struct(name, &Narrow(value))
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.0
            .serialize_newtype_variant(name, index, variant, &Narrow(value))
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        self.0.serialize_seq(length).map(Parts)
    }

    fn serialize_tuple(self, length: usize) -> Result<Self::SerializeTuple, S::Error> {
        self.0.serialize_tuple(length).map(Parts)
    }

    fn serialize_tuple_struct(
        self,
        name: &'static str,
        length: usize,
    ) -> Result<Self::SerializeTupleStruct, S::Error> {
        self.0.serialize_tuple_struct(name, length).map(Parts)
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        let parts = self.0.serialize_tuple_variant(name, index, variant, length);
        parts.map(Parts)
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        self.0.serialize_map(length).map(Parts)
    }

    fn serialize_struct(
        self,
        name: &'static str,
        length: usize,
    ) -> Result<Self::SerializeStruct, S::Error> {
        self.0.serialize_struct(name, length).map(Parts)
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        let parts = self
            .0
            .serialize_struct_variant(name, index, variant, length);
        parts.map(Parts)
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

macro_rules! parts {
    ($($kind:ident: $method:ident($($name:ident: $type:ty)?)),* $(,)?) => {$(
        impl<S: $kind> $kind for Parts<S> {
            type Ok = S::Ok;
            type Error = S::Error;

            fn $method<T: Serialize + ?Sized>(
                &mut self,
                $($name: $type,)?
                value: &T,
            ) -> Result<(), S::Error> {
                self.0.$method($($name,)? &Narrow(value))
            }

            fn end(self) -> Result<S::Ok, S::Error> {
                self.0.end()
            }
        }
    )*};
}

parts! {
    SerializeSeq: serialize_element(),
    SerializeTuple: serialize_element(),
    SerializeTupleStruct: serialize_field(),
    SerializeTupleVariant: serialize_field(),
    SerializeStruct: serialize_field(key: &'static str),
    SerializeStructVariant: serialize_field(key: &'static str),
}

impl<S: SerializeMap> SerializeMap for Parts<S> {
    type Ok = S::Ok;
    type Error = S::Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), S::Error> {
        self.0.serialize_key(&Narrow(key))
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        self.0.serialize_value(&Narrow(value))
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.0.end()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Serialize;

    use super::super::value::encode;

    #[derive(Serialize)]
    enum Kind {
        Unit,
        New(i128),
        Tuple(u128, i8),
        Struct { wide: i128 },
    }

    #[derive(Serialize)]
    struct Everything<I> {
        number: I,
        some: Option<I>,
        list: Vec<I>,
        pair: (I, &'static str),
        map: BTreeMap<I, I>,
    }

    fn everything<I: Copy + Ord>(number: I) -> Everything<I> {
        Everything {
            number,
            some: Some(number),
            list: vec![number; 3],
            pair: (number, "a"),
            map: BTreeMap::from([(number, number)]),
        }
    }

    #[test]
    fn integers_that_fit_are_what_they_would_be_if_they_were_narrower() {
        for number in [0, 7, -7, i64::MIN, i64::MAX] {
            let wide = encode(&everything(i128::from(number))).unwrap();
            assert_eq!(wide, encode(&everything(number)).unwrap());
        }
        let largest = encode(&everything(u128::from(u64::MAX))).unwrap();
        assert_eq!(largest, encode(&everything(u64::MAX)).unwrap());
        assert_eq!(largest, encode(&everything(i128::from(u64::MAX))).unwrap());
    }

    #[test]
    fn integers_that_do_not_are_refused_wherever_they_stand() {
        let wide = i128::from(u64::MAX) + 1;
        let refused = |value: &dyn Fn() -> Result<Vec<u8>, rmp_serde::encode::Error>| {
            let error = value().unwrap_err().to_string();
            assert!(
                error.contains("more than 64 bits: write it as text"),
                "{error}"
            );
        };
        refused(&|| encode(&wide));
        refused(&|| encode(&everything(wide)));
        refused(&|| encode(&[Some((1, wide))]));
        refused(&|| encode(&Kind::New(wide)));
        refused(&|| encode(&Kind::Tuple(u128::MAX, 1)));
        refused(&|| encode(&Kind::Struct { wide: i128::MIN }));
        assert!(encode(&(Kind::Unit, Kind::New(1), Kind::Tuple(1, 1))).is_ok());
    }
}
