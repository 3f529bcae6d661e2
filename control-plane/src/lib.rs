//! temp
pub mod compile;
pub mod config;
pub mod config_dir;
mod duration;
mod files;
pub mod index;
pub mod kinds;
pub mod subscription;
pub mod watch;
pub mod workloads;
pub mod yaml;
