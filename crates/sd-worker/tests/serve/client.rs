//! A plain HTTP client: one connection a request, so that nothing of a request or an answer is hidden.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
};

use serde_json::Value;

use crate::worker::PATIENCE;

/// Talks to one worker.
#[derive(Clone)]
pub(crate) struct Client {
    address: String,
    headers: Vec<(String, String)>,
}

/// A whole answer.
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// A server-sent event.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) data: Value,
}

impl Client {
    pub(crate) fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            headers: vec![],
        }
    }

    /// The same client with another header on every request.
    pub(crate) fn with(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client
            .headers
            .retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        client.headers.push((name.to_owned(), value.to_owned()));
        client
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.send("GET", path, b"")
    }

    pub(crate) fn delete(&self, path: &str) -> Reply {
        self.send("DELETE", path, b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.with("content-type", "application/json").send(
            "POST",
            path,
            body.to_string().as_bytes(),
        )
    }

    /// Sends a request of these very bytes as body.
    pub(crate) fn send(&self, method: &str, path: &str, body: &[u8]) -> Reply {
        let mut head = self.head(method, path);
        if !body.is_empty() || method == "POST" {
            head += &format!("content-length: {}\r\n", body.len());
        }
        head += "connection: close\r\n\r\n";
        let mut stream = self.connect();
        stream.write_all(head.as_bytes()).unwrap();
        // A refusal may come, and the connection close, before the body is sent.
        let _ = stream.write_all(body);
        Reply::read(stream)
    }

    /// The start of a request, up to where more headers can follow.
    pub(crate) fn head(&self, method: &str, path: &str) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !self
            .headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("host"))
        {
            head += &format!("host: {}\r\n", self.address);
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Listens to the events of the job at `path`, after event `after`.
    pub(crate) fn listen(&self, path: &str, after: Option<&str>) -> Events {
        self.try_listen(path, after).expect("no stream of events")
    }

    /// The same for a worker that may be gone at any moment: None if it does not answer.
    pub(crate) fn try_listen(&self, path: &str, after: Option<&str>) -> Option<Events> {
        let client = match after {
            Some(after) => self.with("last-event-id", after),
            None => self.clone(),
        };
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = client.head("GET", &format!("{path}/stream")) + "connection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).ok()?;
        let mut reader = BufReader::new(stream);
        let (status, headers) = try_read_head(&mut reader)?;
        assert_eq!(status, 200, "{headers:?}");
        assert!(
            headers.contains(&("content-type".into(), "text/event-stream".into())),
            "{headers:?}"
        );
        Some(Events {
            lines: Chunks { reader, left: 0 },
        })
    }
}

impl Reply {
    fn read(stream: TcpStream) -> Self {
        let mut reader = BufReader::new(stream);
        let (status, headers) = read_head(&mut reader);
        let mut reply = Self {
            status,
            headers,
            body: vec![],
        };
        if reply.header("transfer-encoding") == Some("chunked") {
            Chunks { reader, left: 0 }
                .read_to_end(&mut reply.body)
                .unwrap();
        } else if let Some(length) = reply.header("content-length") {
            reply.body = vec![0; length.parse().unwrap()];
            // An answer to HEAD has a length and no body.
            let read = reader.read_exact(&mut reply.body);
            read.unwrap_or_else(|_| reply.body.clear());
        }
        reply
    }

    /// Reads an answer from a connection that was written to by hand; None if it was closed without one.
    pub(crate) fn try_read(stream: TcpStream) -> Option<Self> {
        let mut first = [0];
        match stream.peek(&mut first) {
            Ok(1) => Some(Self::read(stream)),
            _ => None,
        }
    }

    /// The first header of that name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.as_str())
    }

    /// All headers of that name.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let found = self.headers.iter().filter(|(other, _)| other == name);
        found.map(|(_, value)| value.as_str()).collect()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

fn read_head(reader: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    try_read_head(reader).expect("no answer")
}

/// Status and headers of an answer; None if it ends before they do.
fn try_read_head(reader: &mut impl BufRead) -> Option<(u16, Vec<(String, String)>)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let status = line.split(' ').nth(1)?.parse().ok()?;
    let mut headers = vec![];
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => {
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
            None if line.ends_with('\n') => return Some((status, headers)),
            None => return None,
        }
    }
}

/// The bytes of a chunked body.
struct Chunks {
    reader: BufReader<TcpStream>,
    left: usize,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            let mut size = String::new();
            self.reader.read_line(&mut size)?;
            if size.trim().is_empty() {
                return Ok(0);
            }
            self.left = usize::from_str_radix(size.trim(), 16).map_err(std::io::Error::other)?;
            if self.left == 0 {
                return Ok(0);
            }
        }
        let wanted = buffer.len().min(self.left);
        let read = self.reader.read(&mut buffer[..wanted])?;
        self.left -= read;
        if self.left == 0 && read > 0 {
            self.reader.read_line(&mut String::new())?;
        }
        Ok(read)
    }
}

/// The events of a job, as they come. Ends when the worker ends the stream.
pub(crate) struct Events {
    lines: Chunks,
}

impl Events {
    fn line(&mut self) -> Option<String> {
        let mut line = vec![];
        let mut byte = [0];
        loop {
            match self.lines.read(&mut byte) {
                Ok(1) if byte[0] == b'\n' => return Some(String::from_utf8(line).unwrap()),
                Ok(1) => line.push(byte[0]),
                _ => return None,
            }
        }
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let mut event = Event {
            name: String::new(),
            id: String::new(),
            data: Value::Null,
        };
        loop {
            let line = self.line()?;
            match line.split_once(':') {
                Some(("event", value)) => event.name = value.trim().to_owned(),
                Some(("id", value)) => event.id = value.trim().to_owned(),
                Some(("data", value)) => event.data = serde_json::from_str(value).unwrap(),
                // A comment that keeps the connection alive.
                Some(_) => {}
                None if event.name.is_empty() => {}
                None => return Some(event),
            }
        }
    }
}
