//! The service's configuration: flags before environment before file before defaults.

use std::{
    fmt, fs,
    net::{Ipv4Addr, SocketAddr},
    num::{NonZeroU64, NonZeroUsize},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use toml::Table;

use crate::{
    args::{DeviceArg, DtypeArg, ServeArgs},
    error::{Error, Result},
};

/// Everything that `sd-worker serve` can be told. Keys of the TOML file are the flags' names.
///
/// Secrets are not part of it, only the files that hold them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Folder of the job store.
    pub data_dir: PathBuf,
    /// Models by name. The first is the one a request without a model gets; the built-in one where there is none.
    #[serde(rename = "model")]
    pub models: Vec<ModelEntry>,
    /// Folders whose sub-folders in diffusers layout are models under their own names, as found at the start.
    #[serde(rename = "model-root")]
    pub model_roots: Vec<PathBuf>,
    /// Where to compute.
    pub device: DeviceArg,
    /// How weights are kept.
    pub dtype: DtypeArg,
    /// File of API keys, `NAME:KEY` a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<PathBuf>,
    /// Whether to listen beyond loopback without API keys.
    pub insecure_no_auth: bool,
    /// Host names to answer under, beside the loopback ones. None and a public address: any.
    #[serde(rename = "allowed-host")]
    pub allowed_hosts: Vec<String>,
    /// Origins whose pages may use the worker, `https://host:port` or `*`.
    #[serde(rename = "cors-origin")]
    pub cors_origins: Vec<String>,
    /// Jobs that may be waiting or running; a further one is refused with 429.
    pub max_queue: NonZeroUsize,
    /// Pictures in one UNet call.
    pub max_batch: NonZeroUsize,
    /// Memory for models and runs. None: what the machine has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory: Option<ByteSize>,
    /// Longest request body.
    pub max_body: ByteSize,
    /// Most denoising steps that a request may ask for.
    pub max_steps: NonZeroUsize,
    /// Most pixels of one picture, given or made.
    pub max_pixels: NonZeroU64,
    /// Most pictures of a job.
    pub max_images: NonZeroUsize,
    /// Open connections; further ones wait.
    pub max_connections: NonZeroUsize,
    /// Time for a request's headers to arrive.
    pub header_timeout_seconds: u64,
    /// Time for a request's body to arrive.
    pub body_timeout_seconds: u64,
    /// Steps between two checkpoints of a run.
    pub checkpoint_steps: NonZeroUsize,
    /// Seconds after which a run is checkpointed in any case.
    pub checkpoint_seconds: u64,
    /// Hours that finished jobs and their pictures are kept.
    pub keep_hours: u64,
    /// Bytes of finished jobs' pictures that are kept, the oldest go first.
    pub max_store: ByteSize,
    /// Whether jobs may name a URL to call when they end.
    pub callbacks: bool,
    /// Whether that URL may be at a private or loopback address.
    pub callback_private_addresses: bool,
    /// File of the secret that signs callbacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callback_secret_file: Option<PathBuf>,
    /// What is logged, in the syntax of `RUST_LOG`. None: what that variable says, or else `info`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// How it is logged.
    pub log_format: LogFormat,
    /// Where an OpenTelemetry collector takes spans, such as `http://localhost:4318`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        const fn count(value: usize) -> NonZeroUsize {
            NonZeroUsize::new(value).expect("the defaults are not zero")
        }
        Self {
            listen: (Ipv4Addr::LOCALHOST, 7860).into(),
            data_dir: dirs::data_dir().unwrap_or_default().join("sd-worker"),
            models: vec![],
            model_roots: vec![],
            device: DeviceArg::Auto,
            dtype: DtypeArg::F32,
            api_key_file: None,
            insecure_no_auth: false,
            allowed_hosts: vec![],
            cors_origins: vec![],
            max_queue: count(256),
            max_batch: count(4),
            max_memory: None,
            max_body: ByteSize(64 << 20),
            max_steps: count(1000),
            max_pixels: const { NonZeroU64::new(2048 * 2048).expect("is not zero") },
            max_images: count(16),
            max_connections: count(1024),
            header_timeout_seconds: 10,
            body_timeout_seconds: 60,
            checkpoint_steps: count(5),
            checkpoint_seconds: 5,
            keep_hours: 24,
            max_store: ByteSize(10 << 30),
            callbacks: false,
            callback_private_addresses: false,
            callback_secret_file: None,
            log: None,
            log_format: LogFormat::Human,
            otlp_endpoint: None,
        }
    }
}

impl Config {
    /// Puts together what is in force: each setting is the flag's, else the environment's (both are in `args`), else the
    /// file's, else the default.
    ///
    /// # Errors
    /// The file cannot be read or has an unknown key or a wrong value; the settings do not fit each other.
    pub fn load(args: &ServeArgs) -> Result<Self> {
        let mut settings = match &args.config {
            Some(path) => read_file(path)?,
            None => Table::new(),
        };
        settings.extend(Table::try_from(args).map_err(Error::ConfigFlags)?);
        let mut config: Self = settings
            .try_into()
            .map_err(|source| Error::ConfigMerge(Box::new(source)))?;
        if config.models.is_empty() && config.model_roots.is_empty() {
            config.models.push(ModelEntry::new("builtin", "builtin"));
        }
        config.check()?;
        Ok(config)
    }

    /// The configuration as a file that can be read back.
    ///
    /// # Errors
    /// A path is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(Error::ConfigFlags)
    }

    fn check(&self) -> Result<()> {
        if !self.listen.ip().is_loopback() && self.api_key_file.is_none() && !self.insecure_no_auth
        {
            return Err(Error::OpenToAll {
                listen: self.listen,
            });
        }
        for (index, model) in self.models.iter().enumerate() {
            if self.models[..index]
                .iter()
                .any(|other| other.name == model.name)
            {
                return Err(Error::Setting {
                    setting: "model",
                    problem: format!("the name `{}` is given twice", model.name),
                });
            }
        }
        if self.callbacks && self.callback_secret_file.is_none() {
            return Err(Error::Setting {
                setting: "callbacks",
                problem: "need --callback-secret-file, whose secret signs them".to_owned(),
            });
        }
        for origin in &self.cors_origins {
            let is_origin = origin
                .split_once("://")
                .is_some_and(|(_, host)| !host.is_empty() && !host.contains('/'));
            if origin != "*" && !is_origin {
                return Err(Error::Setting {
                    setting: "cors-origin",
                    problem: format!("`{origin}` is not SCHEME://HOST[:PORT] or *"),
                });
            }
        }
        Ok(())
    }
}

/// Reads the file; it is checked alone first, for an error that shows the line.
fn read_file(path: &Path) -> Result<Table> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    let wrong = |source: toml::de::Error| {
        let start = source.span().map_or(0, |span| span.start);
        let line = 1 + text
            .bytes()
            .take(start)
            .filter(|&byte| byte == b'\n')
            .count();
        Error::ConfigFile {
            path: path.to_owned(),
            line,
            text: text.lines().nth(line - 1).unwrap_or_default().to_owned(),
            problem: source.message().to_owned(),
        }
    };
    toml::from_str::<Config>(&text).map_err(wrong)?;
    toml::from_str(&text).map_err(wrong)
}

/// A model that requests can name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ModelEntry {
    /// The name in requests.
    pub name: String,
    /// `builtin`, a folder, or `ORG/NAME[@REVISION]` of a hub.
    pub source: String,
    /// Its tiny decoder for previews: TAESD's file, or a folder of diffusers' `AutoencoderTiny`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tiny_vae: Option<PathBuf>,
}

impl ModelEntry {
    /// A model without a tiny decoder.
    pub fn new(name: impl Into<String>, source: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            source: source.into(),
            tiny_vae: None,
        }
    }
}

impl FromStr for ModelEntry {
    type Err = &'static str;

    /// Reads `NAME=SOURCE`, or `SOURCE` alone: its name is its last part.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, source) = text.split_once('=').unwrap_or_else(|| {
            let name = text.trim_end_matches('/').rsplit('/').next();
            (name.unwrap_or(text), text)
        });
        if name.is_empty() || source.is_empty() || name.chars().any(char::is_control) {
            return Err("expected NAME=SOURCE");
        }
        Ok(Self::new(name, source))
    }
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Lines for people
    Human,
    /// One JSON object a line
    Json,
}

/// A number of bytes: `512 MiB`, `8GiB`, `1000000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(pub u64);

/// Units and the power of two of each.
const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl FromStr for ByteSize {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected a number of bytes such as 512 MiB, 8 GiB or 1000000";
        let text = text.trim();
        let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
        let unit = text[digits.len()..].trim();
        let shift = match unit {
            "" => 0,
            unit => {
                UNITS
                    .iter()
                    .find(|(name, _)| name.eq_ignore_ascii_case(unit))
                    .ok_or(EXPECTED)?
                    .1
            }
        };
        let count: u64 = digits.parse().map_err(|_| EXPECTED)?;
        count.checked_mul(1 << shift).map(Self).ok_or(EXPECTED)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) = UNITS
            .into_iter()
            .find(|(_, shift)| self.0 != 0 && self.0.is_multiple_of(1 << shift))
            .unwrap_or(("B", 0));
        write!(f, "{} {unit}", self.0 >> shift)
    }
}

impl TryFrom<String> for ByteSize {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> Self {
        size.to_string()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(args: &[&str]) -> ServeArgs {
        let line = ["sd-worker", "serve"].iter().chain(args);
        let Command::Serve(args) = Cli::try_parse_from(line).unwrap().command else {
            panic!("not serve");
        };
        *args
    }

    #[test]
    fn flags_come_before_the_file_and_the_file_before_the_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker.toml");
        fs::write(
            &path,
            "max-queue = 7\nmax-batch = 3\n[[model]]\nname = \"a\"\nsource = \"builtin\"\n",
        )
        .unwrap();
        let path = path.to_str().unwrap();
        let config = Config::load(&args(&["--config", path, "--max-batch", "2"])).unwrap();
        assert_eq!(config.max_queue.get(), 7);
        assert_eq!(config.max_batch.get(), 2);
        assert_eq!(config.max_steps, Config::default().max_steps);
        assert_eq!(config.models[0].name, "a");
        let config = Config::load(&args(&["--config", path, "--model", "b=builtin"])).unwrap();
        assert_eq!(config.models.len(), 1);
        assert_eq!(config.models[0].name, "b");
    }

    #[test]
    fn what_is_printed_can_be_read_back() {
        let flags = [
            "--model",
            "a=builtin",
            "--model",
            "b=./x",
            "--max-memory",
            "3GiB",
            "--device",
            "cuda:1",
            "--api-key-file",
            "/keys",
            "--cors-origin",
            "https://a.example",
            "--callbacks",
            "--callback-secret-file",
            "/secret",
            "--log-format",
            "json",
        ];
        let config = Config::load(&args(&flags)).unwrap();
        let read: Config = toml::from_str(&config.to_toml().unwrap()).unwrap();
        assert_eq!(read, config);
    }

    #[test]
    fn a_wrong_key_or_value_of_the_file_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker.toml");
        for (text, shown) in [
            ("\nmax-qeue = 7", "line 2, `max-qeue = 7`"),
            ("max-queue = 0", "max-queue"),
            ("listen = \"nowhere\"", "listen"),
            ("max-body = \"many\"", "512 MiB"),
        ] {
            fs::write(&path, text).unwrap();
            let error = Config::load(&args(&["--config", path.to_str().unwrap()])).unwrap_err();
            assert!(error.report().contains(shown), "{}", error.report());
        }
    }

    #[test]
    fn beyond_loopback_needs_keys_or_the_flag() {
        assert!(matches!(
            Config::load(&args(&["--listen", "0.0.0.0:1"])),
            Err(Error::OpenToAll { .. })
        ));
        for more in [&["--insecure-no-auth"][..], &["--api-key-file", "/keys"]] {
            let line = [&["--listen", "[::]:1"], more].concat();
            assert!(Config::load(&args(&line)).is_ok());
        }
    }

    #[test]
    fn settings_that_do_not_fit_are_refused() {
        for flags in [
            &["--model", "a=x/y", "--model", "a=x/z"][..],
            &["--callbacks"],
            &["--cors-origin", "example.com"],
        ] {
            assert!(
                matches!(Config::load(&args(flags)), Err(Error::Setting { .. })),
                "{flags:?}"
            );
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes, shown) in [
            ("8GiB", 8 << 30, "8 GiB"),
            ("512 mib", 512 << 20, "512 MiB"),
            ("1000000", 1_000_000, "1000000 B"),
            ("0", 0, "0 B"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, shown));
            assert_eq!(shown.parse(), Ok(size));
        }
        for text in ["", "GiB", "-1", "1.5 GiB", "1 GB", "99999999999 TiB", "1 2"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }
}
