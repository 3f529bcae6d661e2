//! What the tests have in common: how one is declared and run, the shared shop, load, origins, raw bytes.

pub(crate) mod load;
pub(crate) mod origin;
pub(crate) mod peers;
pub(crate) mod raw;
pub(crate) mod shop;
pub(crate) mod test;
pub(crate) mod yaml;

pub(crate) use test::{Need, Test, long};
