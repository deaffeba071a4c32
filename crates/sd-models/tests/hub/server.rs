//! A hub that speaks the protocol, and breaks it on demand.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

pub(crate) const REPO: &str = "org/model";
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with an answer.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The connection closes after so many bytes of the body.
    Break(usize),
    /// Another status, with an error code.
    Status(u16, &'static str),
    /// One bit of the body is wrong.
    Flip,
    /// The whole file, whatever part was asked for.
    IgnoreRange,
    /// Another part than was asked for.
    WrongRange,
    /// Headers are replaced; an empty value removes one.
    Headers(&'static [(&'static str, &'static str)]),
    /// Text instead of the file, without a length.
    Page,
    /// More than announced.
    Surplus,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) host: String,
    pub(crate) range: Option<String>,
    pub(crate) token: Option<String>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// By method and path; the faults happen one after the other.
    faults: HashMap<(String, String), Vec<Fault>>,
    log: Vec<Request>,
    large_files_elsewhere: bool,
}

#[derive(Clone)]
pub(crate) struct Server {
    state: Arc<Mutex<State>>,
    port: u16,
}

impl Server {
    /// Serves the files of a folder as the repository `org/model`.
    pub(crate) fn new(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut state = State::default();
        add_files(folder, "", &mut state.files);
        let server = Self {
            state: Arc::new(Mutex::new(state)),
            port,
        };
        let serving = server.clone();
        // Ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = serving.clone();
                std::thread::spawn(move || server.serve(stream));
            }
        });
        server
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn insert(&self, path: &str, bytes: Vec<u8>) {
        self.state
            .lock()
            .unwrap()
            .files
            .insert(path.to_owned(), bytes);
    }

    pub(crate) fn remove(&self, path: &str) -> Vec<u8> {
        self.state.lock().unwrap().files.remove(path).unwrap()
    }

    pub(crate) fn file(&self, path: &str) -> Vec<u8> {
        self.state.lock().unwrap().files[path].clone()
    }

    /// The next requests of a file go wrong.
    pub(crate) fn fail(&self, method: &str, path: &str, faults: &[Fault]) {
        self.state
            .lock()
            .unwrap()
            .faults
            .insert((method.to_owned(), path.to_owned()), faults.to_vec());
    }

    /// Redirects requests of large files to another host, as the real hub does.
    pub(crate) fn move_large_files(&self) {
        self.state.lock().unwrap().large_files_elsewhere = true;
    }

    /// The requests since the last call.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    fn serve(&self, mut stream: TcpStream) {
        let Some(request) = read_request(&stream) else {
            return;
        };
        self.state.lock().unwrap().log.push(request.clone());
        let head = request.method == "HEAD";
        let (status, headers, body) = self.answer(&request);
        let mut text = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            text += &format!("{name}: {value}\r\n");
        }
        // A client that gives up is no concern of the server.
        let _ = stream.write_all((text + "\r\n").as_bytes());
        if !head {
            let _ = stream.write_all(&body);
        }
    }

    fn answer(&self, request: &Request) -> (u16, BTreeMap<String, String>, Vec<u8>) {
        let mut state = self.state.lock().unwrap();
        let prefix = format!("/{REPO}/resolve/");
        let elsewhere = request.path.starts_with("/elsewhere/");
        let Some((_, path)) = request
            .path
            .replacen("/elsewhere/", &prefix, 1)
            .strip_prefix(&prefix)
            .and_then(|rest| {
                let (revision, path) = rest.split_once('/')?;
                ["main", "refs%2Fpr%2F1", COMMIT]
                    .contains(&revision)
                    .then(|| (revision.to_owned(), path.to_owned()))
            })
        else {
            return (404, headers(&[("X-Error-Code", "RepoNotFound")]), vec![]);
        };
        let fault = match state
            .faults
            .get_mut(&(request.method.clone(), path.clone()))
        {
            Some(faults) if !faults.is_empty() => Some(faults.remove(0)),
            _ => None,
        };
        if let Some(Fault::Status(status, code)) = fault {
            return (
                status,
                headers(&[("X-Error-Code", code)]),
                b"an error page".to_vec(),
            );
        }
        let Some(file) = state.files.get(&path).cloned() else {
            return (404, headers(&[("X-Error-Code", "EntryNotFound")]), vec![]);
        };
        let sha256: String = Sha256::digest(&file)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let large = path.ends_with(".safetensors");
        let mut fields = headers(&[
            ("X-Repo-Commit", COMMIT),
            (
                "ETag",
                &format!("\"{}\"", if large { &sha256 } else { &sha256[..40] }),
            ),
        ]);
        if large && state.large_files_elsewhere && !elsewhere {
            let location = format!("http://localhost:{}/elsewhere/main/{path}", self.port);
            fields.remove("ETag");
            fields.extend(headers(&[
                ("X-Linked-ETag", &format!("\"{sha256}\"")),
                ("X-Linked-Size", &file.len().to_string()),
                ("Location", &location),
            ]));
            return (302, fields, vec![]);
        }
        let from = request.range.as_ref().map(|range| {
            range["bytes=".len()..range.len() - 1]
                .parse::<usize>()
                .unwrap()
        });
        let from = from.filter(|_| !matches!(fault, Some(Fault::IgnoreRange)));
        let (mut status, mut body) = (200, file.clone());
        if let Some(from) = from {
            let shown = from + usize::from(matches!(fault, Some(Fault::WrongRange)));
            (status, body) = (206, file[from..].to_vec());
            fields.insert(
                "Content-Range".into(),
                format!("bytes {shown}-{}/{}", file.len() - 1, file.len()),
            );
        }
        fields.insert("Content-Length".into(), body.len().to_string());
        match fault {
            Some(Fault::Break(bytes)) => body.truncate(bytes),
            Some(Fault::Flip) => body[0] ^= 1,
            Some(Fault::Headers(replaced)) => {
                if let Some((_, code)) = replaced.iter().find(|(name, _)| *name == "status") {
                    status = code.parse().unwrap();
                }
                fields.extend(headers(replaced));
            }
            Some(Fault::Page) => {
                fields.remove("Content-Length");
                body = b"<html>please log in</html>".to_vec();
            }
            Some(Fault::Surplus) => {
                fields.remove("Content-Length");
                body.extend(b"more");
            }
            _ => {}
        }
        (status, fields, body)
    }
}

fn headers(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn add_files(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
        match path.is_dir() {
            true => add_files(&path, &format!("{name}/"), files),
            false => drop(files.insert(name, std::fs::read(&path).unwrap())),
        }
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream.take(1 << 16))
        .lines()
        .map_while(Result::ok);
    let line = lines.next()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let fields: HashMap<_, _> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            line.split_once(": ")
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        })
        .collect();
    let field = |name: &str| fields.get(name).cloned();
    Some(Request {
        method,
        path,
        host: field("host")?,
        range: field("range"),
        token: field("authorization"),
    })
}
