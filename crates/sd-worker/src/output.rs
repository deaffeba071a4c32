//! Where results go: checked before the work starts, written whole or not at all.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::error::{Error, Result};

/// `--output`: standard output, or a PNG file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output, for a single picture.
    Stdout,
    /// A file whose name ends in `.png`.
    File(PathBuf),
}

impl FromStr for Output {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "-" => Ok(Self::Stdout),
            _ => with_extension(text, "png").map(Self::File).ok_or(
                "pictures are written as PNG: expected a name that ends in .png, or - for standard output",
            ),
        }
    }
}

impl Output {
    /// Finds out, before minutes of computing, whether `images` pictures can be written.
    ///
    /// # Errors
    /// The folder is missing or read-only, or standard output is a terminal or asked to take several pictures.
    pub fn check(&self, images: usize) -> Result<()> {
        match self.path(0, images) {
            Some(path) => check(&path),
            None if images > 1 => Err(Error::SeveralToStdout { images }),
            None if io::stdout().is_terminal() => Err(Error::StdoutIsTerminal),
            None => Ok(()),
        }
    }

    /// Writes picture `index` of `images`; returns its path, None for standard output.
    ///
    /// # Errors
    /// The file or the pipe does not take the bytes.
    pub fn write(&self, index: usize, images: usize, png: &[u8]) -> Result<Option<PathBuf>> {
        let path = self.path(index, images);
        match &path {
            Some(path) => write_whole(path, png)?,
            None => {
                let mut stdout = io::stdout().lock();
                stdout
                    .write_all(png)
                    .and_then(|()| stdout.flush())
                    .map_err(|source| Error::Stdout { source })?;
            }
        }
        Ok(path)
    }

    /// Writes the preview of picture `index` of `images` after `step`; standard output takes none.
    ///
    /// # Errors
    /// The file does not take the bytes.
    pub fn write_preview(
        &self,
        step: usize,
        index: usize,
        images: usize,
        png: &[u8],
    ) -> Result<()> {
        let Some(path) = self.path(index, images) else {
            return Ok(());
        };
        write_whole(&numbered(&path, &format!("step-{step}")), png)
    }

    /// `out.png` for a single picture, `out-1.png`, `out-2.png`, ... for several.
    fn path(&self, index: usize, images: usize) -> Option<PathBuf> {
        let Self::File(path) = self else { return None };
        if images <= 1 {
            return Some(path.clone());
        }
        Some(numbered(path, &(index + 1).to_string()))
    }
}

/// `out.png` to `out-NUMBER.png`.
fn numbered(path: &Path, number: &str) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{number}."));
    name.push(path.extension().unwrap_or_default());
    path.with_file_name(name)
}

/// `--dump-tensors`: a file whose name ends in `.safetensors`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpPath(PathBuf);

impl FromStr for DumpPath {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        with_extension(text, "safetensors")
            .map(Self)
            .ok_or("expected a name that ends in .safetensors")
    }
}

impl DumpPath {
    /// Finds out whether the file can be written.
    ///
    /// # Errors
    /// The folder is missing or read-only.
    pub fn check(&self) -> Result<()> {
        check(&self.0)
    }

    /// Writes the whole file.
    ///
    /// # Errors
    /// The file does not take the bytes.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        write_whole(&self.0, bytes)
    }
}

fn with_extension(text: &str, extension: &str) -> Option<PathBuf> {
    let path = PathBuf::from(text);
    path.extension()
        .is_some_and(|found| found.eq_ignore_ascii_case(extension))
        .then_some(path)
}

fn check(path: &Path) -> Result<()> {
    let folder = folder(path);
    if !folder.is_dir() {
        return Err(Error::NoFolder {
            path: path.into(),
            folder: folder.into(),
        });
    }
    if path.is_dir() {
        return Err(Error::IsFolder { path: path.into() });
    }
    let part = part(path);
    fs::File::create(&part)
        .and_then(|_| fs::remove_file(&part))
        .map_err(|source| Error::Write {
            path: path.into(),
            source,
        })
}

/// Writes beside the target and renames, so that a reader never sees half a file.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = part(path);
    fs::write(&part, bytes)
        .and_then(|()| fs::rename(&part, path))
        .map_err(|source| {
            // The write's own error is the one worth reporting.
            let _ = fs::remove_file(&part);
            Error::Write {
                path: path.into(),
                source,
            }
        })
}

fn folder(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// The process id keeps two runs with one target apart.
fn part(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or(OsStr::new("out")));
    name.push(format!(".{}.part", std::process::id()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_picture_keeps_the_name_and_several_are_numbered() {
        let output: Output = "a.b/cat.v2.PNG".parse().unwrap();
        assert_eq!(output.path(0, 1), Some("a.b/cat.v2.PNG".into()));
        assert_eq!(output.path(0, 3), Some("a.b/cat.v2-1.PNG".into()));
        assert_eq!(output.path(2, 3), Some("a.b/cat.v2-3.PNG".into()));
    }

    #[test]
    fn only_png_names_and_the_dash_are_outputs() {
        assert_eq!("-".parse(), Ok(Output::Stdout));
        for text in ["out.jpg", "out", "", ".png", "folder/"] {
            assert!(text.parse::<Output>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let output = Output::File(folder.path().join("x.png"));
        output.check(1).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        output.write(0, 1, b"old").unwrap();
        let path = output.write(0, 1, b"new").unwrap().unwrap();
        assert_eq!(fs::read(path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_written_is_found_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let missing = Output::File(folder.path().join("no/x.png"));
        assert!(matches!(missing.check(1), Err(Error::NoFolder { .. })));
        let taken = folder.path().join("x.png");
        fs::create_dir(&taken).unwrap();
        assert!(matches!(
            Output::File(taken).check(1),
            Err(Error::IsFolder { .. })
        ));
        assert!(matches!(
            Output::Stdout.check(2),
            Err(Error::SeveralToStdout { images: 2 })
        ));
    }
}
