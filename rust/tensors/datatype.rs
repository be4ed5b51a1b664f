//! The element types that the protocol names.

/// The type of the elements of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as the protocol names them")]
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    /// In binary only.
    Bf16,
    /// Strings.
    Bytes,
}

/// Each type, its name, and the bytes of an element; of a string those of the reference to it.
const ALL: [(Datatype, &str, usize); 14] = [
    (Datatype::Bool, "BOOL", 1),
    (Datatype::Uint8, "UINT8", 1),
    (Datatype::Uint16, "UINT16", 2),
    (Datatype::Uint32, "UINT32", 4),
    (Datatype::Uint64, "UINT64", 8),
    (Datatype::Int8, "INT8", 1),
    (Datatype::Int16, "INT16", 2),
    (Datatype::Int32, "INT32", 4),
    (Datatype::Int64, "INT64", 8),
    (Datatype::Fp16, "FP16", 2),
    (Datatype::Fp32, "FP32", 4),
    (Datatype::Fp64, "FP64", 8),
    (Datatype::Bf16, "BF16", 2),
    (Datatype::Bytes, "BYTES", 8),
];

impl Datatype {
    /// The type with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        ALL.iter().find(|entry| entry.1 == name).map(|entry| entry.0)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        ALL[self as usize].1
    }

    /// Bytes of an element in memory.
    #[must_use]
    pub fn size(self) -> usize {
        ALL[self as usize].2
    }

    /// How many elements a shape has; None where an array of it could not be addressed.
    ///
    /// Zeros are left out of the check, as `NumPy` leaves them out.
    #[must_use]
    pub fn elements(self, shape: &[usize]) -> Option<usize> {
        let mut lengths = shape.iter().filter(|&&length| length > 0);
        let product = lengths.try_fold(1_usize, |all, &length| all.checked_mul(length))?;
        isize::try_from(product.checked_mul(self.size())?).ok()?;
        Some(if shape.contains(&0) { 0 } else { product })
    }
}
