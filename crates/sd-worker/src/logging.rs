//! The log, on standard error, and spans for a collector.

use std::{
    env,
    io::{self, IsTerminal},
};

use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt, layer::SubscriberExt, util::SubscriberInitExt,
};

use crate::{
    config::LogFormat,
    error::{Error, Result},
};

/// Keeps the log going; what is left for a collector is sent when it is dropped.
#[derive(Debug, Default)]
#[must_use]
pub struct Logging {
    #[cfg(feature = "otel")]
    _exporter: Option<crate::otel::Exporter>,
}

/// Starts the log. What is logged is `asked`, else what `RUST_LOG` says, else `default`. Spans also go to the collector at
/// `otlp_endpoint`.
///
/// # Errors
/// `asked` or `RUST_LOG` is no filter, the endpoint is no URL, or this build has no exporter.
pub fn init(
    asked: Option<&str>,
    default: &str,
    format: LogFormat,
    otlp_endpoint: Option<&str>,
) -> Result<Logging> {
    let filter = match (asked, env::var(EnvFilter::DEFAULT_ENV)) {
        (Some(asked), _) => filter("--log", asked)?,
        (None, Ok(text)) if !text.is_empty() => filter(EnvFilter::DEFAULT_ENV, &text)?,
        (None, _) => filter("the default", default)?,
    };
    let lines = fmt::layer().with_writer(io::stderr);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Human => Box::new(lines.with_ansi(io::stderr().is_terminal())),
        LogFormat::Json => Box::new(lines.json()),
    };
    let (logging, spans) = spans(otlp_endpoint)?;
    Registry::default()
        .with(
            vec![Some(lines), spans]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>(),
        )
        .with(filter)
        .init();
    Ok(logging)
}

/// Reads what `origin` says.
fn filter(origin: &'static str, text: &str) -> Result<EnvFilter> {
    EnvFilter::builder()
        .parse(text)
        .map_err(|source| Error::LogFilter {
            origin,
            text: text.to_owned(),
            source,
        })
}

type Spans = Option<Box<dyn Layer<Registry> + Send + Sync>>;

#[cfg(feature = "otel")]
fn spans(otlp_endpoint: Option<&str>) -> Result<(Logging, Spans)> {
    let exporter = otlp_endpoint.map(crate::otel::Exporter::new).transpose()?;
    let layer = exporter.as_ref().map(|exporter| exporter.layer().boxed());
    Ok((
        Logging {
            _exporter: exporter,
        },
        layer,
    ))
}

#[cfg(not(feature = "otel"))]
fn spans(otlp_endpoint: Option<&str>) -> Result<(Logging, Spans)> {
    match otlp_endpoint {
        None => Ok((Logging::default(), None)),
        Some(_) => Err(Error::Setting {
            setting: "otlp-endpoint",
            problem: "this build cannot export spans; build with `--features otel`".to_owned(),
        }),
    }
}
