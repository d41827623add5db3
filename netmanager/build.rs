//! Copies the object of the programs, named by `DATAPLANE_OBJECT`, to where `include_bytes_aligned!` finds it.
//! Without one the binary is built all the same, so that checks need no BPF toolchain; it says so when started.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=DATAPLANE_OBJECT");
    let destination =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("dataplane-ebpf.o");
    match env::var_os("DATAPLANE_OBJECT").filter(|path| !path.is_empty()) {
        Some(object) => {
            let object = PathBuf::from(object);
            println!("cargo::rerun-if-changed={}", object.display());
            if let Err(error) = fs::copy(&object, &destination) {
                panic!("DATAPLANE_OBJECT: cannot copy {}: {error}", object.display());
            }
        }
        None => fs::write(&destination, []).expect("OUT_DIR is writable"),
    }
}
