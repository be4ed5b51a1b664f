//! Inference by the Open Inference Protocol, version 2: tensors in a request's JSON or behind it, and in an answer's.
//!
//! Source: kserve/open-inference-protocol, `specification/protocol/inference_rest.md`, and
//! triton-inference-server/server, `docs/protocol/extension_binary_data.md`.

pub mod answer;
mod binary;
mod data;
pub mod datatype;
mod fields;
pub mod input;
pub mod request;

#[cfg(target_endian = "big")]
compile_error!("tensors in binary are little-endian, and go in and out as they are in memory");
