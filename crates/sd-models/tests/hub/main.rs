//! Models from a hub, against a server on this machine.
#![cfg(feature = "hub")]

#[path = "../common/mod.rs"]
mod common;
mod server;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sd_models::{
    DownloadProgress, Error, HubError, HubOptions, LoadOptions, Model, ModelSource, Result, Token,
    load,
};
use server::{COMMIT, Fault, REPO, Request, Server};
use tempfile::TempDir;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const INDEX: &str = "model_index.json";

/// A server of a tiny model and an empty cache.
struct Hub {
    server: Server,
    cache: TempDir,
}

impl Hub {
    fn new() -> Self {
        let server = Server::new(&common::golden("models/sd15"));
        Self {
            server,
            cache: tempfile::tempdir().unwrap(),
        }
    }

    fn options(&self) -> LoadOptions {
        let mut hub = HubOptions::new(self.cache.path());
        hub.endpoint = self.server.endpoint();
        hub.backoff = Duration::from_millis(1);
        hub.timeout = Duration::from_secs(5);
        LoadOptions {
            hub: Some(hub),
            ..Default::default()
        }
    }

    fn load(&self) -> Result<Model> {
        self.load_with(|_| ())
    }

    fn load_with(&self, change: impl FnOnce(&mut HubOptions)) -> Result<Model> {
        let mut options = self.options();
        change(options.hub.as_mut().unwrap());
        load(&REPO.parse().unwrap(), &options)
    }

    #[track_caller]
    fn fails(&self) -> HubError {
        hub_error(self.load())
    }

    fn repo(&self) -> PathBuf {
        self.cache.path().join("models--org--model")
    }

    fn snapshot(&self, path: &str) -> PathBuf {
        self.repo().join("snapshots").join(COMMIT).join(path)
    }

    /// Names of the files in `blobs`.
    fn blobs(&self) -> Vec<String> {
        let entries = self.repo().join("blobs").read_dir().unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

#[track_caller]
fn hub_error(result: Result<Model>) -> HubError {
    match result.map(drop) {
        Err(Error::Hub(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn of(requests: &[Request], method: &str, file: &str) -> Vec<Request> {
    requests
        .iter()
        .filter(|r| r.method == method && r.path.ends_with(file))
        .cloned()
        .collect()
}

#[test]
fn a_model_is_fetched_once_and_kept_as_python_keeps_it() {
    let hub = Hub::new();
    hub.server.insert("README.md", b"not needed".to_vec());
    hub.server
        .insert("unet/diffusion_pytorch_model.bin", b"not needed".to_vec());
    let seen = Arc::new(Mutex::new(Vec::<DownloadProgress>::new()));
    let sink = seen.clone();
    let mut options = hub.options();
    options.progress = Some(Arc::new(move |progress| {
        sink.lock().unwrap().push(progress.clone())
    }));
    let model = load(&REPO.parse().unwrap(), &options).unwrap();
    assert!(model.warnings.is_empty());

    let requests = hub.server.requests();
    assert!(
        requests
            .iter()
            .all(|r| !r.path.ends_with(".md") && !r.path.ends_with(".bin"))
    );
    let position = |file: &str| {
        requests
            .iter()
            .position(|r| r.method == "GET" && r.path.ends_with(file))
            .unwrap()
    };
    assert!(
        position("unet/config.json") < position(UNET)
            && position("vae/config.json") < position(UNET)
    );
    let last = seen
        .lock()
        .unwrap()
        .iter()
        .rfind(|progress| progress.file == UNET)
        .cloned()
        .unwrap();
    assert_eq!(
        (last.downloaded, last.total),
        (hub.server.file(UNET).len() as u64, last.downloaded)
    );

    assert_eq!(
        std::fs::read_to_string(hub.repo().join("refs/main")).unwrap(),
        COMMIT
    );
    assert_eq!(
        std::fs::read(hub.snapshot(UNET)).unwrap(),
        hub.server.file(UNET)
    );
    #[cfg(unix)]
    assert!(
        std::fs::read_link(hub.snapshot(UNET))
            .unwrap()
            .starts_with("../../../blobs")
    );
    assert!(
        hub.repo()
            .join(".no_exist")
            .join(COMMIT)
            .join("tokenizer/tokenizer.json")
            .is_file()
    );
    assert!(hub.blobs().iter().all(|name| !name.ends_with("incomplete")));

    hub.load().unwrap();
    let again = hub.server.requests();
    assert_eq!(
        again.len(),
        1,
        "a branch may have moved, which takes one request: {again:?}"
    );
    let pinned = ModelSource::Hub {
        repo: REPO.into(),
        revision: Some(COMMIT.into()),
    };
    load(&pinned, &hub.options()).unwrap();
    assert_eq!(hub.server.requests(), [], "a commit does not move");
}

#[test]
fn a_config_is_read_without_weights_and_tokenizers() {
    let hub = Hub::new();
    let config = sd_models::config(&REPO.parse().unwrap(), &hub.options()).unwrap();
    assert!(
        hub.server
            .requests()
            .iter()
            .all(|r| r.path.ends_with(".json") && !r.path.contains("tokenizer"))
    );
    assert_eq!(config, hub.load().unwrap().config);

    hub.server.insert("vae/config.json", b"{".to_vec());
    let error = sd_models::config(
        &REPO.parse().unwrap(),
        &Hub {
            cache: tempfile::tempdir().unwrap(),
            ..hub
        }
        .options(),
    );
    assert!(matches!(error, Err(Error::Config { .. })), "{error:?}");
}

/// The cache links to files under their hashes, on systems where it can.
#[cfg(unix)]
#[test]
fn the_hub_knows_the_hashes_of_its_files() {
    let hub = Hub::new();
    let model = hub.load().unwrap();
    let blob = std::fs::canonicalize(hub.snapshot(UNET)).unwrap();
    let hash = blob.file_name().unwrap().to_str().unwrap();
    // Whoever read the file would find another one.
    std::fs::write(&blob, "not read").unwrap();
    assert_eq!(model.weights_sha256().unwrap(), hash);
    let expected = load(
        &ModelSource::Dir(common::golden("models/sd15")),
        &LoadOptions::default(),
    )
    .unwrap();
    assert_eq!(expected.weights_sha256().unwrap(), hash);
    assert_eq!(
        expected.fingerprint().unwrap(),
        model.fingerprint().unwrap()
    );
}

#[test]
fn large_files_come_from_another_host_which_gets_no_token() {
    let hub = Hub::new();
    hub.server.move_large_files();
    hub.load_with(|options| options.token = Token::new("hf_secret"))
        .unwrap();
    let (elsewhere, here): (Vec<_>, Vec<_>) = hub
        .server
        .requests()
        .into_iter()
        .partition(|r| r.host.starts_with("localhost"));
    assert!(!elsewhere.is_empty() && elsewhere.iter().all(|r| r.token.is_none()));
    assert!(
        here.iter()
            .all(|r| r.token.as_deref() == Some("Bearer hf_secret"))
    );
    assert_eq!(
        std::fs::read(hub.snapshot(UNET)).unwrap(),
        hub.server.file(UNET)
    );
}

#[test]
fn a_broken_connection_is_continued() {
    let hub = Hub::new();
    hub.server.fail(
        "GET",
        UNET,
        &[Fault::Break(1000), Fault::Break(0), Fault::Break(500)],
    );
    hub.load().unwrap();
    let ranges: Vec<_> = of(&hub.server.requests(), "GET", UNET)
        .into_iter()
        .map(|r| r.range)
        .collect();
    let from = |start: usize| Some(format!("bytes={start}-"));
    assert_eq!(ranges, [None, from(1000), from(1000), from(1500)]);
    assert_eq!(
        std::fs::read(hub.snapshot(UNET)).unwrap(),
        hub.server.file(UNET)
    );
}

#[test]
fn a_download_is_continued_by_the_next_process() {
    let hub = Hub::new();
    hub.server
        .fail("GET", UNET, &[const { Fault::Break(1000) }; 1]);
    let error = hub_error(hub.load_with(|options| options.retries = 0));
    assert!(matches!(error, HubError::Connection { .. }), "{error}");
    assert_eq!(
        error.to_string(),
        format!(
            "{REPO}: the connection failed at {UNET}: check the network, or set HF_ENDPOINT to a mirror"
        )
    );
    hub.server.requests();
    hub.load().unwrap();
    assert_eq!(
        of(&hub.server.requests(), "GET", UNET)[0].range.as_deref(),
        Some("bytes=1000-")
    );
    assert_eq!(
        std::fs::read(hub.snapshot(UNET)).unwrap(),
        hub.server.file(UNET)
    );
}

#[test]
fn a_connection_that_breaks_for_ever_is_given_up() {
    let hub = Hub::new();
    hub.server.fail("GET", UNET, &vec![Fault::Break(0); 100]);
    assert!(matches!(hub.fails(), HubError::Connection { .. }));
    assert_eq!(
        of(&hub.server.requests(), "GET", UNET).len(),
        5,
        "one attempt and four more"
    );
}

#[test]
fn a_server_that_cannot_continue_sends_everything() {
    for fault in [Fault::IgnoreRange, Fault::Status(416, "")] {
        let hub = Hub::new();
        hub.server.fail("GET", UNET, &[Fault::Break(1000), fault]);
        hub.load().unwrap();
        assert_eq!(
            std::fs::read(hub.snapshot(UNET)).unwrap(),
            hub.server.file(UNET)
        );
    }
}

#[test]
fn what_arrives_damaged_is_deleted() {
    let hub = Hub::new();
    hub.server.fail("GET", UNET, &[Fault::Flip]);
    let error = hub.fails();
    assert!(
        matches!(&error, HubError::Checksum { file, .. } if file == UNET),
        "{error}"
    );
    assert_eq!(of(&hub.server.requests(), "GET", UNET).len(), 1);
    assert!(!hub.snapshot(UNET).exists());
    let HubError::Checksum { expected, .. } = error else {
        unreachable!()
    };
    assert!(
        !hub.blobs().iter().any(|name| name.starts_with(&expected)),
        "neither the file nor a part is kept"
    );
    hub.load().unwrap();
}

#[test]
fn a_damaged_part_costs_a_second_download() {
    let hub = Hub::new();
    hub.server.fail("GET", UNET, &[Fault::Break(1000)]);
    hub_error(hub.load_with(|options| options.retries = 0));
    let part = hub
        .blobs()
        .into_iter()
        .find(|name| name.ends_with(".incomplete"))
        .unwrap();
    std::fs::write(hub.repo().join("blobs").join(part), vec![0; 1000]).unwrap();
    hub.load().unwrap();
    assert_eq!(
        std::fs::read(hub.snapshot(UNET)).unwrap(),
        hub.server.file(UNET)
    );
}

#[test]
fn a_part_that_is_too_long_is_dropped() {
    let hub = Hub::new();
    hub.server.fail("GET", UNET, &[Fault::Break(1000)]);
    hub_error(hub.load_with(|options| options.retries = 0));
    let part = hub
        .blobs()
        .into_iter()
        .find(|name| name.ends_with(".incomplete"))
        .unwrap();
    std::fs::write(hub.repo().join("blobs").join(part), vec![0; 10_000_000]).unwrap();
    hub.load().unwrap();
}

#[test]
fn refusals_say_what_to_do_and_keep_the_token() {
    let cases = [
        (
            401,
            "",
            "org/model: access to model_index.json is denied: check the name, and set HF_TOKEN if the repository is private or gated",
        ),
        (403, "GatedRepo", "set HF_TOKEN to a token that may read it"),
        (
            404,
            "RepoNotFound",
            "org/model: the hub has no such repository: check the name",
        ),
        (
            404,
            "RevisionNotFound",
            "org/model: the hub has no such revision `main`: check the name",
        ),
        (
            404,
            "EntryNotFound",
            "org/model: there is no model_index.json, so this is not a model in the layout of diffusers",
        ),
        (
            410,
            "",
            "org/model: the hub answered 410 for model_index.json: try again later",
        ),
    ];
    for (status, code, message) in cases {
        let hub = Hub::new();
        hub.server
            .fail("HEAD", INDEX, &[Fault::Status(status, code)]);
        let error = Error::from(hub_error(
            hub.load_with(|options| options.token = Token::new("hf_secret")),
        ));
        assert!(
            error.to_string().contains(message),
            "{status} {code}: {error}"
        );
        assert!(!format!("{error} {error:?}").contains("hf_secret"));
        assert_eq!(hub.server.requests().len(), 1, "{status} is final");
    }
    let hub = Hub::new();
    hub.server.fail("GET", UNET, &[Fault::Status(401, "")]);
    assert!(matches!(hub.fails(), HubError::Unauthorized { file, .. } if file == UNET));
    let none = load(&"other/model".parse().unwrap(), &hub.options());
    assert!(matches!(hub_error(none), HubError::NotFound { what, .. } if what == "repository"));
}

#[test]
fn an_overloaded_server_is_waited_for() {
    let hub = Hub::new();
    hub.server.fail(
        "HEAD",
        INDEX,
        &[Fault::Status(503, ""), Fault::Status(429, "")],
    );
    hub.server.fail("GET", UNET, &[Fault::Status(500, "")]);
    hub.load().unwrap();
    hub.server
        .fail("HEAD", INDEX, &vec![Fault::Status(500, ""); 9]);
    let other = Hub {
        server: hub.server,
        cache: tempfile::tempdir().unwrap(),
    };
    assert!(matches!(
        other.fails(),
        HubError::Status { status: 500, .. }
    ));
    let heads = of(&other.server.requests(), "HEAD", INDEX).len();
    assert_eq!(
        heads,
        3 + 1 + 5,
        "the revision until it is answered, the file, then an attempt and four more"
    );
}

#[test]
fn odd_answers_are_errors_and_write_nothing_outside_the_cache() {
    let odd: [&'static [(&str, &str)]; 8] = [
        &[("ETag", "")],
        &[("ETag", "\"../../../../evil\"")],
        &[("ETag", "\"\"")],
        &[("X-Repo-Commit", "")],
        &[("X-Repo-Commit", "../../../evil")],
        &[("X-Repo-Commit", "main")],
        &[("status", "302"), ("ETag", ""), ("Location", "")],
        &[
            ("status", "302"),
            ("Location", "/org/model/resolve/main/model_index.json"),
        ],
    ];
    for headers in odd {
        let hub = Hub::new();
        hub.server
            .fail("HEAD", INDEX, &vec![Fault::Headers(headers); 9]);
        assert!(
            matches!(hub.fails(), HubError::Protocol { .. }),
            "{headers:?}"
        );
        assert!(!hub.repo().join("snapshots").exists(), "{headers:?}");
        assert!(!hub.cache.path().parent().unwrap().join("evil").exists());
    }
}

#[test]
fn bodies_that_are_not_the_file_are_refused() {
    for (file, fault) in [
        (UNET, Fault::Page),
        (UNET, Fault::Surplus),
        ("unet/config.json", Fault::Surplus),
    ] {
        let hub = Hub::new();
        hub.server.fail("GET", file, &vec![fault.clone(); 9]);
        let error = hub.fails();
        let refused = matches!(
            error,
            HubError::Protocol { .. } | HubError::Connection { .. } | HubError::Checksum { .. }
        );
        assert!(refused, "{fault:?}: {error}");
        assert!(!hub.snapshot(file).exists(), "{fault:?}");
    }
    let hub = Hub::new();
    hub.server
        .fail("GET", UNET, &[Fault::Break(1000), Fault::WrongRange]);
    assert!(matches!(hub.fails(), HubError::Protocol { .. }));
}

#[test]
fn offline_mode_uses_the_cache_and_nothing_else() {
    let hub = Hub::new();
    let offline = |options: &mut HubOptions| options.offline = true;
    let error = hub_error(hub.load_with(offline));
    assert!(
        error
            .to_string()
            .ends_with("offline mode is on: unset HF_HUB_OFFLINE"),
        "{error}"
    );
    assert_eq!(hub.server.requests(), []);

    hub.load().unwrap();
    hub.server.requests();
    hub.load_with(offline).unwrap();
    assert_eq!(hub.server.requests(), []);

    std::fs::remove_file(hub.snapshot(UNET)).unwrap();
    let error = hub.load_with(offline).unwrap_err();
    assert!(matches!(error, Error::MissingFile { .. }), "{error}");
    assert!(
        error
            .to_string()
            .starts_with("org/model@main (cached files only): no unet/"),
        "{error}"
    );
    assert_eq!(hub.server.requests(), []);
}

#[test]
fn a_hub_that_cannot_be_reached_is_replaced_by_the_cache() {
    let hub = Hub::new();
    let nowhere = |options: &mut HubOptions| options.endpoint = "http://127.0.0.1:1".to_owned();
    assert!(matches!(
        hub_error(hub.load_with(nowhere)),
        HubError::Connection { .. }
    ));
    hub.load().unwrap();
    hub.load_with(nowhere).unwrap();
    hub.server.fail("HEAD", INDEX, &[Fault::Status(503, "")]);
    hub.load().unwrap();
}

#[test]
fn a_revision_may_have_slashes() {
    let hub = Hub::new();
    let source: ModelSource = format!("{REPO}@refs/pr/1").parse().unwrap();
    load(&source, &hub.options()).unwrap();
    assert_eq!(
        std::fs::read_to_string(hub.repo().join("refs/refs/pr/1")).unwrap(),
        COMMIT
    );
}

#[test]
fn a_source_that_leaves_the_cache_is_refused() {
    let hub = Hub::new();
    for (repo, revision) in [
        ("../..", "main"),
        ("org/..", "main"),
        ("model", "main"),
        (REPO, "../../main"),
        (REPO, ""),
    ] {
        let source = ModelSource::Hub {
            repo: repo.into(),
            revision: Some(revision.into()),
        };
        let result = load(&source, &hub.options());
        assert!(matches!(result, Err(Error::Source(_))), "{source}");
    }
    assert_eq!(hub.server.requests(), []);
}

#[test]
fn a_bad_endpoint_is_an_error() {
    for endpoint in ["", "huggingface.co", "ftp://x", "http://", "http://a b"] {
        let hub = Hub::new();
        let error = hub_error(hub.load_with(|options| {
            options.endpoint = endpoint.to_owned();
            options.retries = 0;
        }));
        assert!(
            matches!(
                error,
                HubError::Protocol { .. } | HubError::Connection { .. }
            ),
            "{endpoint}: {error}"
        );
    }
}

#[test]
fn a_variant_is_preferred_and_the_rest_not_fetched() {
    let hub = Hub::new();
    let half = "unet/diffusion_pytorch_model.fp16.safetensors";
    hub.server.insert(half, hub.server.file(UNET));
    let options = LoadOptions {
        variant: Some("fp16".into()),
        ..hub.options()
    };
    let model = load(&REPO.parse().unwrap(), &options).unwrap();
    let requests = hub.server.requests();
    assert_eq!(
        (
            of(&requests, "GET", half).len(),
            of(&requests, "GET", UNET).len()
        ),
        (1, 0)
    );
    assert_eq!(
        model.warnings.len(),
        2,
        "text encoder and autoencoder have no such variant: {:?}",
        model.warnings
    );
}

#[test]
fn shards_are_fetched_by_their_index() {
    let hub = Hub::new();
    let bytes = hub.server.remove(UNET);
    let shard = "unet/diffusion_pytorch_model-00001-of-00001.safetensors";
    hub.server.insert(shard, bytes.clone());
    let index = r#"{"weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00001.safetensors"}}"#;
    hub.server.insert(
        "unet/diffusion_pytorch_model.safetensors.index.json",
        index.into(),
    );
    hub.load().unwrap();
    assert_eq!(std::fs::read(hub.snapshot(shard)).unwrap(), bytes);
}

#[test]
fn a_repository_of_pickles_is_refused_unread() {
    let hub = Hub::new();
    let bytes = hub.server.remove(UNET);
    hub.server.insert("unet/diffusion_pytorch_model.bin", bytes);
    let error = hub.load().unwrap_err();
    assert!(
        matches!(&error, Error::Pickle { file, .. } if file == "unet/diffusion_pytorch_model.bin"),
        "{error}"
    );
    assert!(of(&hub.server.requests(), "GET", ".bin").is_empty());
}

#[test]
fn two_loads_at_once_share_the_download() {
    let hub = Hub::new();
    std::thread::scope(|scope| {
        let loads = [(); 3].map(|()| scope.spawn(|| hub.load().map(drop)));
        for load in loads {
            load.join().unwrap().unwrap();
        }
    });
    assert_eq!(of(&hub.server.requests(), "GET", UNET).len(), 1);
}

#[test]
fn without_a_hub_the_error_says_how_to_get_one() {
    let error = load(&REPO.parse().unwrap(), &LoadOptions::default()).unwrap_err();
    assert!(
        error.to_string().contains("HubOptions::from_env"),
        "{error}"
    );
    assert!(!Path::new(REPO).exists());
}
