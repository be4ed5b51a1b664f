//! The core's one error type: a kind and a position. The text is made only when somebody reads it.

use thiserror::Error;

/// What went wrong, with the facts that its message needs.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum ErrorKind {
    // --- the split (InvalidSplit) ---
    /// Weights that do not sum to one.
    #[error("Traffic splits must sum to 1.0, found {0}")]
    SplitSum(f64),
    /// A weight below zero, infinite or not a number.
    #[error("the weight of {arm} must be a finite number of at least 0, found {weight}")]
    SplitWeight {
        /// The arm.
        arm: String,
        /// Its weight.
        weight: f64,
    },
    /// No arm at all, or more than fit the table.
    #[error("a split has 1 to 256 arms, found {0}")]
    SplitArms(usize),

    // --- documents that we wrote once and read back (InvalidDocument) ---
    /// Runs that do not own every slot exactly once.
    #[error("the ledger does not own every slot exactly once: {0}")]
    Ledger(String),
    /// Bytes that are no dump of a series, or of runs, whichever was expected.
    #[error("not a dump of statistics")]
    Dump,

    // --- requests (InvalidRequest) ---
    /// The body is not JSON, or not of the expected form.
    #[error("{expected}, found {found}")]
    Json {
        /// What should have been there, as a phrase: `expected a number`.
        expected: &'static str,
        /// What was there.
        found: String,
    },
    /// A key of the request that this route does not know.
    #[error("unknown field {name:?}; {takes}")]
    UnknownField {
        /// The key.
        name: String,
        /// The keys that it knows, as a sentence.
        takes: &'static str,
    },
    /// The same key twice in one object.
    #[error("duplicate key {0:?}")]
    DuplicateKey(String),
    /// A request without features.
    #[error("missing field \"features\"")]
    MissingFeatures,
    /// A batch without rows.
    #[error("missing field \"rows\" or \"columns\"")]
    MissingRows,
    /// Lists of different lengths in one batch.
    #[error("{name} has {found} values where the batch has {expected} rows")]
    RowCount {
        /// What has another length.
        name: String,
        /// Rows of the batch.
        expected: usize,
        /// Values found, at least.
        found: usize,
    },
    /// More rows than a batch may have.
    #[error("a batch has at most {0} rows; see the setting max_batch_rows")]
    TooManyRows(usize),
    /// An entity id of another type, or text that is not Unicode.
    #[error("an entity id is a string or an integer, found {0}")]
    Entity(String),
    /// Offsets of an Arrow array that fall or leave its data.
    #[error("offsets must rise and stay inside the data")]
    Offsets,

    // --- tensors (InvalidRequest); the tensor is named by `Error::feature` ---
    /// Something is wrong with a tensor.
    #[error("{role} {name:?}{}: {problem}", element.map(|index| format!(", element {index}")).unwrap_or_default())]
    Tensor {
        /// `input` or `output`.
        role: &'static str,
        /// Its name, or its index where it has none.
        name: String,
        /// Index of the element in C order, where it is about one.
        element: Option<usize>,
        /// Why not.
        problem: String,
    },
    /// An inference request without inputs.
    #[error("missing field \"inputs\"")]
    MissingInputs,
    /// Two tensors of one name.
    #[error("duplicate {role} {name:?}")]
    DuplicateTensor {
        /// `input` or `output`.
        role: &'static str,
        /// Their name.
        name: String,
    },
    /// More tensors than a request may have.
    #[error("a request has at most {most} {role}")]
    TooManyTensors {
        /// `inputs` or `outputs`.
        role: &'static str,
        /// Most of them.
        most: usize,
    },
    /// A parameter whose name belongs to another server.
    #[error("parameter {0:?}: names that begin with \"triton_\" are reserved")]
    ReservedParameter(String),
    /// The header that says where the JSON ends, pointing behind the body.
    #[error("Inference-Header-Content-Length: expected at most {most} (the length of the body), found {found}")]
    HeaderLength {
        /// Length of the body.
        most: usize,
        /// What it says.
        found: String,
    },
    /// Tensors in binary that are not as long as the inputs say.
    #[error("expected {expected} bytes of binary tensors behind the JSON, found {found}")]
    BinaryBytes {
        /// Sum of the sizes of the inputs.
        expected: usize,
        /// Bytes behind the JSON.
        found: usize,
    },

    // --- features (InvalidFeatures); the feature is named by `Error::feature` ---
    /// A value of the wrong type or out of range.
    #[error("feature {feature:?}: {expected}, found {found}")]
    Value {
        /// The feature's name, or its index where it has none.
        feature: String,
        /// What should have been there.
        expected: String,
        /// What was there.
        found: String,
    },
    /// A feature without default that was not sent.
    #[error("feature {0:?} is missing and has no default")]
    MissingFeature(String),
    /// A name that no version of the model knows.
    #[error("no version of this model has a feature {name:?}{}", nearest.as_ref().map(|n| format!("; did you mean {n:?}?")).unwrap_or_default())]
    UnknownFeature {
        /// The name that came.
        name: String,
        /// The nearest known name, where one is near.
        nearest: Option<String>,
    },
    /// A list of the wrong length.
    #[error("expected {expected} features in the order of the schema, found {found}")]
    FeatureCount {
        /// Length of the schema.
        expected: usize,
        /// Length of the list.
        found: usize,
    },
    /// An object of features for a version whose features have no names.
    #[error("this version has no feature names: expected a list of {0} numbers")]
    Unnamed(usize),
    /// A version that takes free tensors, which a row of features cannot carry.
    #[error("version {0} takes free tensors, not a row of features")]
    FreeTensors(String),

    // --- routing ---
    /// Neither an override, a test nor an active version.
    #[error("model {0} has no active version")]
    NoActiveVersion(String),

    // --- outputs (PredictionFailed) ---
    /// An output that cannot be written.
    #[error("output {name:?}: {problem}")]
    Output {
        /// Name of the output.
        name: String,
        /// Why not.
        problem: String,
    },
}

/// A kind, and where in the body (bytes from its start) it was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Error {
    /// What went wrong.
    pub kind: ErrorKind,
    /// Byte offset into the body, where there is one.
    pub position: Option<usize>,
}

/// The result of everything in the core that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error at a byte of the body.
    #[must_use]
    pub fn at(kind: ErrorKind, position: usize) -> Self {
        Self { kind, position: Some(position) }
    }

    /// The feature or the tensor that the error is about, where it is about one.
    #[must_use]
    pub fn feature(&self) -> Option<&str> {
        match &self.kind {
            ErrorKind::Value { feature, .. } => Some(feature),
            ErrorKind::MissingFeature(name)
            | ErrorKind::UnknownFeature { name, .. }
            | ErrorKind::Tensor { name, .. }
            | ErrorKind::DuplicateTensor { name, .. } => Some(name),
            _ => None,
        }
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind, position: None }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.kind)?;
        match self.position {
            Some(position) => write!(formatter, " (byte {position})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
