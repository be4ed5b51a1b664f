//! Arrays that somebody else owns, of whatever element type they are.

/// Values of one type.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "named by their types")]
pub enum Slice<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
    I8(&'a [i8]),
    I16(&'a [i16]),
    I32(&'a [i32]),
    I64(&'a [i64]),
    U8(&'a [u8]),
    U16(&'a [u16]),
    U32(&'a [u32]),
    U64(&'a [u64]),
    Bool(&'a [bool]),
}

/// Do the same with the values of a slice, whatever their type.
macro_rules! with_values {
    ($slice:expr, $values:ident => $work:expr) => {
        match $slice {
            $crate::slice::Slice::F32($values) => $work,
            $crate::slice::Slice::F64($values) => $work,
            $crate::slice::Slice::I8($values) => $work,
            $crate::slice::Slice::I16($values) => $work,
            $crate::slice::Slice::I32($values) => $work,
            $crate::slice::Slice::I64($values) => $work,
            $crate::slice::Slice::U8($values) => $work,
            $crate::slice::Slice::U16($values) => $work,
            $crate::slice::Slice::U32($values) => $work,
            $crate::slice::Slice::U64($values) => $work,
            $crate::slice::Slice::Bool($values) => $work,
        }
    };
}
pub(crate) use with_values;

impl Slice<'_> {
    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        with_values!(self, values => values.len())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
