//! Connections: accepted up to a number, cut off when they dawdle, and brought to an end in order.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::config::Config;

/// How long answers may take to be finished after the service was told to end.
const GRACE: Duration = Duration::from_secs(3);
/// Pause after a connection could not be accepted, for want of file handles for instance.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Serves `app` until `stopping` is cancelled; answers under way are finished, up to three seconds.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    config: &Config,
    stopping: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(config.max_connections.get()));
    let connections = TaskTracker::new();
    let mut server = http1::Builder::new();
    // axum's own server has no time limit on headers.
    server
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(config.header_timeout_seconds.max(1)));
    while let Some(place) = until(&stopping, Arc::clone(&places).acquire_owned()).await {
        let Ok(place) = place else { break };
        let stream = match until(&stopping, listener.accept()).await {
            None => break,
            Some(Ok((stream, _))) => stream,
            Some(Err(error)) => {
                if !is_the_clients(&error) {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(BACK_OFF).await;
                }
                continue;
            }
        };
        let (server, app, stopping) = (server.clone(), app.clone(), stopping.clone());
        connections.spawn(async move {
            connection(&server, stream, app, stopping).await;
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(GRACE, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(open = connections.len(), "connections were cut off");
    }
}

async fn connection(
    server: &http1::Builder,
    stream: TcpStream,
    app: Router,
    stopping: CancellationToken,
) {
    // Events are small and urgent.
    let _ = stream.set_nodelay(true);
    let served = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    tokio::pin!(served);
    let done = match until(&stopping, served.as_mut()).await {
        Some(done) => done,
        None => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = done {
        tracing::debug!(error = super::chain(&error), "a connection broke off");
    }
}

/// The future's output, or None once `stopping` is cancelled.
async fn until<F: Future>(stopping: &CancellationToken, future: F) -> Option<F::Output> {
    stopping.run_until_cancelled(future).await
}

fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
    )
}
