//! temp
pub mod config;
pub mod kinds;
pub mod yaml;
