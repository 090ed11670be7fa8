//! Gives the library the name that the real one has, so that whatever looks at SONAME is satisfied.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libnrt.so.1");
}
