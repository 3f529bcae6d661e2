//! temp
pub mod compile;
pub mod config;
pub mod index;
pub mod kinds;
pub mod subscription;
pub mod yaml;
