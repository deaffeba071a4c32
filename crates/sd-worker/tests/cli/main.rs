//! The binary, run as a user runs it.

mod dump;
mod pictures;
mod source;
mod usage;

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

/// Runs `sd-worker` in `folder`.
fn worker<S: AsRef<OsStr>>(folder: &Path, args: impl IntoIterator<Item = S>) -> Output {
    command(folder, args).output().unwrap()
}

fn command<S: AsRef<OsStr>>(folder: &Path, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-worker"));
    // What the caller's machine has or says must not matter.
    command
        .args(args)
        .current_dir(folder)
        .env_remove("RUST_LOG")
        .env("HF_HOME", folder)
        .env("HF_HUB_OFFLINE", "1");
    command
}

/// Runs `sd-worker generate` with the built-in model for two steps, unless `args` say otherwise.
fn generate(folder: &Path, args: &[&str]) -> Output {
    let steps: &[&str] = if args.contains(&"--steps") {
        &[]
    } else {
        &["--steps", "2"]
    };
    worker(
        folder,
        [
            &["generate", "a red circle on a white background"],
            steps,
            args,
        ]
        .concat(),
    )
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A folder of the repository's golden tests.
fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(path)
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The command failed with `code` and an error of one or two lines that contains each of `parts`.
fn assert_fails(output: &Output, code: i32, parts: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(output.stdout.is_empty());
    assert!((1..=2).contains(&text.lines().count()), "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

fn assert_done(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
}
