//! One attempt at one callback.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use time::OffsetDateTime;
use ureq::{Agent, unversioned::transport::DefaultConnector};

use super::{WebhookConfig, address::PublicResolver, check_url};
use crate::{hex, jobs::JobId};

/// How long one attempt may take.
const TIMEOUT: Duration = Duration::from_secs(15);

pub(super) struct Courier {
    agent: Agent,
    config: WebhookConfig,
}

/// What became of an attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    Arrived,
    /// Another time it may work.
    Failed(String),
    /// It never will.
    Refused(String),
}

impl Courier {
    pub(super) fn new(config: &WebhookConfig) -> Self {
        let settings = Agent::config_builder()
            .https_only(!config.allow_http)
            // A redirect could lead where the URL must not.
            .max_redirects(0)
            // So could a proxy, which looks hosts up by itself.
            .proxy(None)
            .http_status_as_error(false)
            .timeout_global(Some(TIMEOUT))
            .user_agent(concat!("sd-worker/", env!("CARGO_PKG_VERSION")))
            .build();
        let resolver = PublicResolver {
            allow_private: config.allow_private,
        };
        Self {
            agent: Agent::with_parts(settings, DefaultConnector::default(), resolver),
            config: config.clone(),
        }
    }

    pub(super) fn deliver(
        &self,
        url: &str,
        job: JobId,
        body: &[u8],
        now: OffsetDateTime,
    ) -> Delivery {
        // What was allowed when the job came may not be any more.
        if let Err(expected) = check_url(url, &self.config) {
            return Delivery::Refused(expected);
        }
        let timestamp = now.unix_timestamp().to_string();
        let Some(signature) = sign(&self.config.secret, &timestamp, body) else {
            return Delivery::Refused("the secret cannot be used".into());
        };
        let sent = self
            .agent
            .post(url)
            .header("Content-Type", "application/json")
            .header("Sd-Job-Id", job.to_string())
            .header("Sd-Timestamp", timestamp)
            .header("Sd-Signature", signature)
            .send(body);
        match sent {
            Ok(answer) if answer.status().is_success() => Delivery::Arrived,
            // 410: the receiver says it is gone for good.
            Ok(answer) if answer.status() == 410 => Delivery::Refused("410 Gone".into()),
            Ok(answer) => Delivery::Failed(answer.status().to_string()),
            Err(error) => Delivery::Failed(error.to_string()),
        }
    }
}

/// The value of `Sd-Signature`.
fn sign(secret: &[u8], timestamp: &str, body: &[u8]) -> Option<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body);
    let digest = mac.finalize().into_bytes();
    Some(format!("sha256={}", hex::encode(&digest)))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::TcpListener,
        sync::Arc,
        thread,
    };

    use super::*;

    fn local() -> WebhookConfig {
        WebhookConfig {
            allow_http: true,
            allow_private: true,
            ..WebhookConfig::new(b"key".to_vec(), Arc::new(|_| vec![]))
        }
    }

    /// Answers one request with `answer`, and returns its head and body.
    fn receive(
        listener: TcpListener,
        answer: &'static str,
    ) -> thread::JoinHandle<(String, Vec<u8>)> {
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if line.trim().is_empty() {
                    break;
                }
                let line = line.to_ascii_lowercase();
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                head.push_str(&line);
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
            (head, body)
        })
    }

    fn send(answer: &'static str) -> (Delivery, String, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/done?x=1", listener.local_addr().unwrap());
        let receiver = receive(listener, answer);
        let now = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        let delivery = Courier::new(&local()).deliver(&url, JobId::new(), b"{\"a\":1}", now);
        let (head, body) = receiver.join().unwrap();
        (delivery, head, body)
    }

    #[test]
    fn a_callback_is_signed() {
        let (delivery, head, body) = send("HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!(delivery, Delivery::Arrived);
        assert_eq!(body, b"{\"a\":1}");
        assert!(head.starts_with("post /done?x=1 http/1.1"), "{head}");
        assert!(head.contains("sd-timestamp: 1700000000"), "{head}");
        // python3: hmac.new(b'key', b'1700000000.{"a":1}', 'sha256').hexdigest()
        let expected =
            "sd-signature: sha256=a438e398bfafc57e4396bb7fc2304422f0f768e965d073ca313cb52e22e6ad03";
        assert!(head.contains(expected), "{head}");
    }

    #[test]
    fn failures_and_redirects_are_no_arrivals() {
        let (failed, ..) = send("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n");
        assert!(matches!(failed, Delivery::Failed(_)), "{failed:?}");
        let (redirected, ..) = send(
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        );
        assert!(
            matches!(&redirected, Delivery::Failed(reason) if reason.contains("302")),
            "{redirected:?}"
        );
        let (gone, ..) = send("HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n");
        assert!(matches!(gone, Delivery::Refused(_)), "{gone:?}");
    }

    #[test]
    fn a_name_that_leads_to_this_machine_is_not_called() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = WebhookConfig {
            allow_private: false,
            ..local()
        };
        for host in ["localhost", "2130706433", "0x7f000001"] {
            let url = format!("http://{host}:{port}/");
            let now = OffsetDateTime::now_utc();
            let delivery = Courier::new(&config).deliver(&url, JobId::new(), b"{}", now);
            assert!(
                matches!(delivery, Delivery::Failed(_)),
                "{host}: {delivery:?}"
            );
        }
        assert!(listener.accept().is_err(), "somebody called");
    }
}
