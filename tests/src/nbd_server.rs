//! A server of `wb_daemon::nbd` on threads of the test's process.

use crate::nbd_client::{Address, ConnectOptions, NbdClient};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wb_core::rt::{Config, Listener, Remote, RuntimeThread, spawn};
use wb_core::service::BlockService;
use wb_core::sync::WaitQueue;
use wb_daemon::nbd::{Limits, ListenAddress, NbdServer};

const SECOND_NS: u64 = 1_000_000_000;

/// Tells the threads to stop, and within which time.
#[derive(Default)]
struct StopOrder {
    /// 0: go on.
    limit_ns: AtomicU64,
    changed: WaitQueue,
}

impl StopOrder {
    fn give(&self, limit_ns: u64) {
        self.limit_ns.store(limit_ns, Ordering::SeqCst);
        self.changed.notify_all();
    }
    async fn given(&self) -> u64 {
        let limit = || Some(self.limit_ns.load(Ordering::SeqCst)).filter(|&limit| limit > 0);
        self.changed.wait_until(limit).await
    }
}

/// A running server; stops when dropped.
pub struct TestServer<S: BlockService> {
    /// The service behind it.
    pub service: S,
    /// The server itself, for its figures.
    pub server: NbdServer<S>,
    path: PathBuf,
    tcp: Option<SocketAddr>,
    stop: Arc<StopOrder>,
    main: Option<RuntimeThread<usize>>,
    others: Vec<RuntimeThread<()>>,
    others_stop: Arc<StopOrder>,
    _dir: tempfile::TempDir,
}

impl<S: BlockService> TestServer<S> {
    /// Serves on one thread, on a Unix socket.
    pub fn start(service: S) -> TestServer<S> {
        TestServer::start_with(service, Limits::default(), 1)
    }

    /// Serves on `threads` threads, on a Unix socket and on TCP.
    pub fn start_with(service: S, limits: Limits, threads: usize) -> TestServer<S> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("nbd.sock");
        let server = NbdServer::new(service.clone(), "vol", "a test volume", limits).expect("valid limits");
        let others_stop = Arc::new(StopOrder::default());
        let others: Vec<RuntimeThread<()>> = (1..threads)
            .map(|number| {
                let stop = others_stop.clone();
                let main = move || async move {
                    let _ = stop.given().await;
                };
                RuntimeThread::start(&format!("nbd-{number}"), Config::default(), main).expect("a thread")
            })
            .collect();
        let open = |address: &ListenAddress| address.open().expect("a listener").remove(0);
        let unix = open(&ListenAddress::Unix(path.clone()));
        let tcp_listener = open(&"127.0.0.1:0".parse().expect("an address"));
        let tcp = tcp_listener.address();
        let stop = Arc::new(StopOrder::default());
        let remotes: Vec<Remote> = others.iter().map(|thread| thread.remote().clone()).collect();
        let main = {
            let (server, stop) = (server.clone(), stop.clone());
            move || serve(server, [unix, tcp_listener], remotes, stop)
        };
        let main = RuntimeThread::start("nbd-0", Config::default(), main).expect("a thread");
        TestServer { service, server, path, tcp, stop, main: Some(main), others, others_stop, _dir: dir }
    }

    /// The Unix socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The Unix socket as an address of the client.
    pub fn address(&self) -> Address {
        self.path().into()
    }

    /// The TCP socket.
    pub fn tcp(&self) -> Address {
        Address::Tcp(self.tcp.expect("listens on TCP"))
    }

    /// The Unix socket as programs want it.
    pub fn uri(&self) -> String {
        ListenAddress::Unix(self.path.clone()).uri("")
    }

    /// A client with structured replies.
    pub fn connect(&self) -> NbdClient {
        NbdClient::connect_unix(&self.path).expect("a connection")
    }

    /// A client without structured replies.
    pub fn connect_simple(&self) -> NbdClient {
        let options = ConnectOptions { structured: false, ..ConnectOptions::default() };
        NbdClient::connect(&self.address(), &options).expect("a connection")
    }

    /// Begins to stop, without waiting.
    pub fn begin_stop(&self, limit: Duration) {
        self.stop.give(limit.as_nanos() as u64);
    }

    /// Stops, and tells how many connections were left.
    pub fn stop(mut self, limit: Duration) -> usize {
        self.begin_stop(limit);
        self.join()
    }

    fn join(&mut self) -> usize {
        let left = self.main.take().map_or(0, |main| main.join().expect("no panic on the server's first thread"));
        self.others_stop.give(SECOND_NS);
        for thread in self.others.drain(..) {
            thread.join().expect("no panic on a server's thread");
        }
        left
    }

    /// Waits until `condition` holds; panics after 10 s.
    #[track_caller]
    pub fn wait_until(&self, what: &str, condition: impl Fn(&TestServer<S>) -> bool) {
        let begin = Instant::now();
        while !condition(self) {
            assert!(begin.elapsed() < Duration::from_secs(10), "waited 10 s until {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl<S: BlockService> Drop for TestServer<S> {
    fn drop(&mut self) {
        if self.main.is_some() {
            self.begin_stop(Duration::from_secs(1));
            let left = self.join();
            if !std::thread::panicking() {
                assert_eq!(left, 0, "connections ended with the server");
                assert_eq!(self.server.bytes_in_flight(), 0, "all memory was given back");
            }
        }
    }
}

async fn serve<S: BlockService>(
    server: NbdServer<S>,
    listeners: [Listener; 2],
    threads: Vec<Remote>,
    stop: Arc<StopOrder>,
) -> usize {
    for listener in listeners {
        let acceptor = server.clone();
        let threads = threads.clone();
        drop(spawn(async move {
            if threads.is_empty() {
                let here = acceptor.clone();
                acceptor.accept(listener, |stream| drop(here.serve_connection(stream))).await;
            } else {
                let spread = acceptor.round_robin(threads);
                acceptor.accept(listener, spread).await;
            }
        }));
    }
    let limit_ns = stop.given().await;
    server.stop(limit_ns).await
}
