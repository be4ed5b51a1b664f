//! The core of Turnout: which version answers an entity, its features as a matrix, its outputs as JSON.
//!
//! Everything but `py` is plain Rust and is tested without Python.

pub mod answers;
pub mod batch;
pub mod columns;
pub mod encode;
pub mod error;
pub mod feature;
pub mod features;
pub mod hash;
pub mod json;
pub mod ledger;
pub mod names;
pub mod number;
#[cfg(feature = "python")]
mod py;
pub mod receipt;
pub mod recorder;
pub mod route;
pub mod runs;
pub mod slice;
pub mod table;
pub mod tensors;
pub mod watch;
