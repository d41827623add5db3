//! Where things are in the repository.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::command::{cargo, output};

/// The root of the repository. Cargo tells where this package lies when it runs it; what was true when it was built
/// may be another checkout, if they share a target folder.
pub fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let package = match (env::var("CARGO_PKG_NAME"), env::var_os("CARGO_MANIFEST_DIR")) {
            (Ok(name), Some(directory)) if name == env!("CARGO_PKG_NAME") => PathBuf::from(directory),
            // Run without cargo, or from another package's program.
            _ => PathBuf::from(env!("CARGO_MANIFEST_DIR")),
        };
        package
            .parent()
            .map(Path::to_owned)
            .expect("this package lies in a folder of the repository")
    });
    &ROOT
}

/// The folder cargo builds in, absolute.
pub fn target_directory() -> Result<PathBuf> {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => std::path::absolute(&directory).context("CARGO_TARGET_DIR names no folder"),
        None => Ok(root().join("target")),
    }
}

/// A built program, in the folder of its profile (`debug`, `release`).
pub fn binary(profile: &str, name: &str) -> Result<PathBuf> {
    Ok(target_directory()?.join(profile).join(name))
}

/// The features of the workspace that turn on the tests that need root and a kernel, as `--features` takes them.
/// Asked from cargo, so that a crate that gets such a feature is not forgotten.
pub fn kernel_test_features() -> Result<String> {
    const FEATURE: &str = "kernel-tests";
    let text = output(cargo()?.args(["metadata", "--no-deps", "--locked", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&text).context("cannot read what cargo metadata printed")?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let features: Vec<String> = packages
        .iter()
        .filter(|package| package["features"].get(FEATURE).is_some())
        .filter_map(|package| Some(format!("{}/{FEATURE}", package["name"].as_str()?)))
        .collect();
    Ok(features.join(","))
}
