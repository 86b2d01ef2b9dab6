//! Tells the linker what it needs for the kernel.
fn main() {
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rerun-if-changed=kernel.ld");
    println!("cargo:rustc-link-arg-bins=-T{dir}/kernel.ld");
    // Equal functions become one: nothing compares their addresses.
    println!("cargo:rustc-link-arg-bins=--icf=all");
}
