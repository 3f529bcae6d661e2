//! Compiles `proto/` with protox, a protobuf compiler in Rust: nobody needs `protoc` to build this repository.
//!
//! Only with feature `grpc`. Without it (the core's build) there is nothing to generate, and neither protox nor the
//! code generator is compiled.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "grpc")]
    generate()?;
    Ok(())
}

#[cfg(feature = "grpc")]
fn generate() -> Result<(), Box<dyn std::error::Error>> {
    use protox::prost::Message as _;

    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["proto/outrigger/v1/mesh.proto"], ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
