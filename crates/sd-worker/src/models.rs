//! `sd-worker models`: the known models, and those in the local cache.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use sd_config::{ModelConfig, Version, files::MODEL_INDEX};
use sd_pipeline::Request;

use crate::error::{Error, Result};

/// Prints the list.
///
/// # Errors
/// Standard output is closed.
pub fn run() -> Result<()> {
    let list = list(cache_folder().as_deref());
    io::stdout()
        .write_all(list.as_bytes())
        .map_err(|source| Error::Stdout { source })
}

#[cfg(feature = "hub")]
fn cache_folder() -> Option<PathBuf> {
    Some(sd_models::HubOptions::from_env().ok()?.cache_dir)
}

#[cfg(not(feature = "hub"))]
fn cache_folder() -> Option<PathBuf> {
    None
}

fn list(cache: Option<&Path>) -> String {
    let mut cached = cache.map(cached_models).unwrap_or_default();
    let mut list = "Known models, for --version; or --model with a repository:\n".to_owned();
    row(
        &mut list,
        [
            "NAME",
            "SIZE",
            "STEPS",
            "GUIDANCE",
            "SCHEDULER",
            "GENERATE",
            "CACHED",
            "REPOSITORY",
        ],
    );
    for version in Version::ALL {
        let config = ModelConfig::preset(version);
        let draws = Request::new("").resolve(&config).is_ok();
        let ModelConfig {
            defaults,
            scheduler,
            ..
        } = config;
        let found = cached
            .iter()
            .position(|model| model.repository == version.repo_id());
        row(
            &mut list,
            [
                version.name(),
                &format!("{}x{}", defaults.width, defaults.height),
                &defaults.num_inference_steps.to_string(),
                &defaults.guidance_scale.to_string(),
                scheduler.class_name.trim_end_matches("Scheduler"),
                if draws { "yes" } else { "no" },
                &found.map_or("-".to_owned(), |index| {
                    gigabytes(cached.remove(index).bytes)
                }),
                version.repo_id(),
            ],
        );
    }
    if let Some(cache) = cache {
        // Writing to a String cannot fail.
        let _ = writeln!(list, "\nOther models in {}:", cache.display());
        if cached.is_empty() {
            list.push_str("  none\n");
        }
        for model in cached {
            let _ = writeln!(list, "  {:<8} {}", gigabytes(model.bytes), model.repository);
        }
    }
    list.push_str("\nWithout --model and --version the built-in model draws.\n");
    list
}

fn row(list: &mut String, cells: [&str; 8]) {
    let [
        name,
        size,
        steps,
        guidance,
        scheduler,
        draws,
        cached,
        repository,
    ] = cells;
    let _ = writeln!(
        list,
        "  {name:<13} {size:<10} {steps:<6} {guidance:<9} {scheduler:<23} {draws:<9} {cached:<8} {repository}"
    );
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// A repository in the cache.
struct Cached {
    repository: String,
    bytes: u64,
}

/// The repositories that hold a model in diffusers layout, by name. What cannot be read is not listed.
fn cached_models(cache: &Path) -> Vec<Cached> {
    let mut models: Vec<_> = entries(cache)
        .filter_map(|folder| {
            let name = folder.file_name()?.to_str()?.strip_prefix("models--")?;
            let has_model = entries(&folder.join("snapshots"))
                .any(|snapshot| snapshot.join(MODEL_INDEX).exists());
            has_model.then(|| Cached {
                repository: name.replacen("--", "/", 1),
                bytes: bytes(&folder.join("blobs")),
            })
        })
        .collect();
    models.sort_by(|a, b| a.repository.cmp(&b.repository));
    models
}

fn bytes(folder: &Path) -> u64 {
    entries(folder)
        .filter_map(|file| fs::metadata(file).ok())
        .map(|file| file.len())
        .sum()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(cache: &Path, folder: &str, file: &str) {
        let snapshot = cache.join(folder).join("snapshots/0123abc");
        fs::create_dir_all(&snapshot).unwrap();
        fs::write(snapshot.join(file), "{}").unwrap();
        fs::create_dir_all(cache.join(folder).join("blobs")).unwrap();
        fs::write(
            cache.join(folder).join("blobs/weights"),
            vec![0; 60_000_000],
        )
        .unwrap();
    }

    #[test]
    fn cached_models_are_told_from_other_repositories() {
        let cache = tempfile::tempdir().unwrap();
        add(cache.path(), "models--stabilityai--sdxl-turbo", MODEL_INDEX);
        add(cache.path(), "models--me--my--own", MODEL_INDEX);
        add(cache.path(), "models--openai--whisper", "config.json");
        let list = list(Some(cache.path()));
        let line = |name: &str| {
            list.lines()
                .find(|line| line.contains(name))
                .map(str::to_owned)
        };
        assert!(
            line("stabilityai/sdxl-turbo").unwrap().contains("0.1 GB"),
            "{list}"
        );
        assert!(line("me/my--own").unwrap().contains("0.1 GB"), "{list}");
        assert!(
            line("stabilityai/sd-turbo").unwrap().contains(" - "),
            "{list}"
        );
        assert_eq!(line("whisper"), None);
    }

    #[test]
    fn every_version_is_listed_without_a_cache() {
        let list = list(None);
        for version in Version::ALL {
            assert!(
                list.contains(&format!("  {version} ")) && list.contains(version.repo_id()),
                "{list}"
            );
        }
    }
}
