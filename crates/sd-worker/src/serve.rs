//! `sd-worker serve`: from the configuration to a running service, and to its orderly end.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process,
    sync::Arc,
    time::Duration,
};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use sd_config::files::MODEL_INDEX;
use sd_pipeline::{Device, Pipeline};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    args::ServeArgs,
    config::{Config, ModelEntry},
    device,
    engine::{self, Checkpoints, Engine, EngineConfig},
    error::{Error, Result},
    http::{self, AppState, Keys},
    loading, logging,
    store::{Retention, SqliteStore},
    webhook::WebhookConfig,
};

/// Shortest secret of callbacks, in bytes: whoever guesses it can forge them.
const MIN_SECRET: usize = 16;
/// Threads that talk to clients; the engine has its own.
const HTTP_THREADS: usize = 2;
/// How often histograms give up what is too old.
const UPKEEP: Duration = Duration::from_secs(5);
/// Bounds of the histograms of times, in seconds.
const SECONDS: [f64; 12] = [
    0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0,
];
/// Bounds of the histograms of batch sizes.
const SIZES: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

/// Prints the configuration in force.
///
/// # Errors
/// As [`Config::load`]; standard output is closed.
pub fn print_config(args: &ServeArgs) -> Result<()> {
    let text = Config::load(args)?.to_toml()?;
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|source| Error::Stdout { source })
}

/// Serves until SIGTERM or SIGINT: then nothing more is accepted, streams end, and running jobs are brought to disk. A
/// second signal ends the process at once.
///
/// # Errors
/// The configuration is wrong, a model or the store cannot be opened, or the address is taken.
pub fn run(args: &ServeArgs) -> Result<()> {
    let config = Arc::new(Config::load(args)?);
    let _log = logging::init(
        config.log.as_deref(),
        "info",
        config.log_format,
        config.otlp_endpoint.as_deref(),
    )?;
    let keys = keys(&config)?;
    let engine_config = engine_config(&config)?;
    let metrics = recorder()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    runtime.block_on(async {
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|source| Error::Listen {
                listen: config.listen,
                source,
            })?;
        let store = SqliteStore::open(&config.data_dir)?;
        let engine = Engine::start(engine_config, Arc::new(store))?;
        let stopping = CancellationToken::new();
        tokio::spawn(on_signals(stopping.clone()));
        tokio::spawn(upkeep(metrics.clone()));
        let address = listener.local_addr().map_err(Error::Runtime)?;
        tracing::info!(%address, data_dir = %config.data_dir.display(), "listening");
        let app = http::app(AppState {
            engine: engine.clone(),
            config: Arc::clone(&config),
            keys,
            stopping: stopping.clone(),
            metrics,
        });
        let ((), ended) = tokio::join!(
            http::serve(listener, app, &config, stopping.clone()),
            async {
                tokio::select! {
                    () = stopping.cancelled() => {
                        engine.shutdown().await;
                        Ok(())
                    }
                    // Nobody would be served any more: whoever runs the worker has to know.
                    () = engine.ended() => {
                        stopping.cancel();
                        Err(engine::Error::Ended)
                    }
                }
            }
        );
        ended?;
        tracing::info!("stopped; unfinished jobs go on at the next start");
        Ok(())
    })
}

fn keys(config: &Config) -> Result<Keys> {
    let Some(path) = &config.api_key_file else {
        return Ok(Keys::default());
    };
    let wrong = |problem| Error::Keys {
        path: path.clone(),
        problem,
    };
    let keys = Keys::parse(&read(path)?).map_err(wrong)?;
    if keys.is_empty() {
        // Open to everybody is not what a file of keys asks for.
        return Err(wrong("expected at least one key".to_owned()));
    }
    Ok(keys)
}

fn engine_config(config: &Config) -> Result<EngineConfig> {
    let device = device::open(config.device)?;
    let models = models(config)?;
    let limit = loading::max_memory(config.max_memory, &device);
    let models: Result<Vec<_>> = models
        .iter()
        .map(|model| entry(model, &device, limit, config))
        .collect();
    Ok(EngineConfig {
        model_memory: limit,
        max_queue: config.max_queue.get(),
        max_batch: config.max_batch.get(),
        checkpoints: Checkpoints {
            calls: config.checkpoint_steps.get(),
            interval: Duration::from_secs(config.checkpoint_seconds),
        },
        retention: Retention {
            max_age: Duration::from_secs(config.keep_hours.saturating_mul(3600)),
            max_bytes: config.max_store.0,
            callbacks: config.callbacks,
        },
        webhooks: webhooks(config)?,
        ..EngineConfig::new(models?)
    })
}

/// The configured models, then those found in the roots.
fn models(config: &Config) -> Result<Vec<ModelEntry>> {
    let mut models = config.models.clone();
    for root in &config.model_roots {
        for folder in model_folders(root)? {
            let name = folder
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if models.iter().any(|model| model.name == name) {
                return Err(Error::Setting {
                    setting: "model-root",
                    problem: format!("the name `{name}` is taken by another model"),
                });
            }
            models.push(ModelEntry::new(name, folder.display().to_string()));
        }
    }
    if models.is_empty() {
        return Err(Error::Setting {
            setting: "model-root",
            problem: "no sub-folder is a model in diffusers layout".to_owned(),
        });
    }
    Ok(models)
}

/// The sub-folders in diffusers layout, by name.
fn model_folders(root: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(root).map_err(|source| Error::Read {
        path: root.to_owned(),
        source,
    })?;
    let mut folders: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|folder| folder.join(MODEL_INDEX).is_file())
        .collect();
    folders.sort();
    Ok(folders)
}

fn entry(
    model: &ModelEntry,
    device: &Device,
    limit: Option<u64>,
    config: &Config,
) -> Result<engine::ModelEntry> {
    let source = loading::source(&model.source)?;
    let options = loading::options(&source, device.clone(), config.dtype)?;
    let mut builder = Pipeline::builder(source).options(options);
    if let Some(limit) = limit {
        builder = builder.max_memory(limit);
    }
    if let Some(path) = &model.tiny_vae {
        builder = builder.tiny_vae(path);
    }
    Ok(engine::ModelEntry {
        name: model.name.clone(),
        builder,
    })
}

fn webhooks(config: &Config) -> Result<Option<WebhookConfig>> {
    let Some(path) = config
        .callback_secret_file
        .as_ref()
        .filter(|_| config.callbacks)
    else {
        return Ok(None);
    };
    let secret = read(path)?.trim().as_bytes().to_vec();
    if secret.len() < MIN_SECRET {
        return Err(Error::Setting {
            setting: "callback-secret-file",
            problem: format!(
                "the secret has {} bytes, expected {MIN_SECRET} or more (openssl rand -hex 32)",
                secret.len()
            ),
        });
    }
    Ok(Some(WebhookConfig {
        allow_http: config.callback_private_addresses,
        allow_private: config.callback_private_addresses,
        ..WebhookConfig::new(secret, Arc::new(http::job_json))
    }))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

/// Collects what the service counts and times, for `/metrics`.
fn recorder() -> Result<PrometheusHandle> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("seconds".to_owned()), &SECONDS)
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Suffix("size".to_owned()), &SIZES)
        })
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| Error::Runtime(io::Error::other(error)))
}

async fn upkeep(metrics: PrometheusHandle) {
    let mut interval = tokio::time::interval(UPKEEP);
    loop {
        interval.tick().await;
        metrics.run_upkeep();
    }
}

/// Cancels `stopping` at the first signal and ends the process at the second.
async fn on_signals(stopping: CancellationToken) {
    if let Err(error) = signal().await {
        tracing::error!(%error, "cannot listen for signals");
        return;
    }
    tracing::info!("stopping");
    stopping.cancel();
    if signal().await.is_ok() {
        process::exit(1);
    }
}

/// Resolves at SIGTERM or SIGINT.
#[cfg(unix)]
async fn signal() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted,
    }
}

#[cfg(not(unix))]
async fn signal() -> io::Result<()> {
    tokio::signal::ctrl_c().await
}
