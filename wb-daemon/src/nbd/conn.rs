//! One connection: the handshake, then a reader that hands requests to workers while a writer sends their replies.

use super::budget::{Account, Charge};
use super::codec::handshake::{Handshake, Progress, Session, greeting};
use super::codec::reply::Reply;
use super::codec::request::{Command, Request, Verdict};
use super::codec::wire::NbdError;
use super::execute::{Job, Work};
use super::inbox::{Inbox, InboxError};
use super::limits::read_split;
use super::outbox::Outbox;
use super::server::{Phase, Shared};
use super::workers::Workers;
use std::rc::Rc;
use std::sync::Arc;
use tracing::{debug, info};
use wb_core::rt::{self, NetError, Shutdown, Stream};
use wb_core::service::BlockService;
use wb_core::types::{BLOCK_BYTES, BLOCK_BYTES_U64};

/// A connection in the transmission phase, as its tasks share it.
pub(super) struct Conn<S> {
    pub(super) shared: Arc<Shared<S>>,
    pub(super) session: Session,
    pub(super) outbox: Rc<Outbox>,
    workers: Rc<Workers<Job>>,
    /// For each class of the service's read buffers, by their length.
    reads: Vec<(usize, Rc<Account>)>,
    writes: Rc<Account>,
}

/// Serves a connection until it ends.
pub(super) async fn serve<S: BlockService>(shared: Arc<Shared<S>>, stream: Stream) {
    let outbox = Rc::new(Outbox::default());
    let watcher = rt::spawn(watch(shared.clone(), stream.clone(), outbox.clone()));
    let peer = stream.peer();
    debug!("NBD connection from {peer}");
    match serve_until_end(&shared, &stream, &outbox).await {
        Ok(()) => debug!("NBD connection from {peer} ended"),
        // A client can cause these lines at will.
        Err(why) if shared.may_log() => info!("NBD connection from {peer} closed: {why}"),
        Err(why) => debug!("NBD connection from {peer} closed: {why}"),
    }
    watcher.cancel().await;
    // Fails only if the connection is gone already.
    let _ = stream.shutdown(Shutdown::Both);
}

/// Ends the connection when the server stops: once everything is answered, or at once if that takes too long.
async fn watch<S: BlockService>(shared: Arc<Shared<S>>, stream: Stream, outbox: Rc<Outbox>) {
    shared.reached(Phase::Stopping).await;
    let answered = async {
        outbox.idle().await;
        // The reader sees an end of the stream.
        let _ = stream.shutdown(Shutdown::Receive);
        std::future::pending::<()>().await;
    };
    let aborted = async {
        shared.reached(Phase::Aborting).await;
        let _ = stream.shutdown(Shutdown::Both);
    };
    futures_util::future::join(answered, aborted).await;
}

async fn serve_until_end<S: BlockService>(
    shared: &Arc<Shared<S>>,
    stream: &Stream,
    outbox: &Rc<Outbox>,
) -> Result<(), String> {
    let watch = shared.pressure.watch(stream);
    let mut inbox = Inbox::new(stream.clone(), shared.pools.clone(), watch.pace.clone());
    let limit = shared.limits.handshake_ns;
    let session = match rt::timeout(limit, shake_hands(shared, stream, &mut inbox)).await {
        Ok(Ok(session)) => session,
        Ok(Err(why)) => return Err(why),
        Err(_) => return Err(format!("no handshake within {} s", limit / 1_000_000_000)),
    };
    let limit_bytes = shared.limits.bytes_per_connection;
    let conn = Rc::new(Conn {
        shared: shared.clone(),
        session,
        outbox: outbox.clone(),
        workers: Rc::new(Workers::new()),
        reads: shared.read_budgets.iter().map(|(bytes, budget)| (*bytes, Account::new(budget, limit_bytes))).collect(),
        writes: Account::new(&shared.write_budget, limit_bytes),
    });
    let writer = rt::spawn({
        let (outbox, stream, pace) = (outbox.clone(), stream.clone(), watch.pace.clone());
        async move { outbox.send_all(&stream, &pace).await }
    });
    let result = conn.read_requests(&mut inbox).await;
    drop(inbox);
    // What is in work is finished and answered, whatever ended the reading.
    outbox.close();
    writer.await;
    conn.workers.close();
    result.map_err(|error| error.to_string())
}

async fn shake_hands<S: BlockService>(
    shared: &Shared<S>,
    stream: &Stream,
    inbox: &mut Inbox,
) -> Result<Session, String> {
    let lost = |error: NetError| format!("during the handshake: {error}");
    stream.send_bytes(&greeting()).await.map_err(lost)?;
    let mut handshake = Handshake::new(&shared.export);
    let mut output = Vec::new();
    let mut progress = Progress::NeedMore;
    loop {
        if progress == Progress::NeedMore {
            inbox.fill().await.map_err(lost)?;
        }
        let consumed;
        (consumed, progress) = handshake.advance(inbox.bytes(), &mut output);
        inbox.consume(consumed);
        if !output.is_empty() {
            stream.send_bytes(&output).await.map_err(lost)?;
            output.clear();
        }
        match progress {
            Progress::NeedMore | Progress::Pause => {}
            Progress::Transmission(session) => return Ok(session),
            Progress::Close(why) => return Err(why.to_string()),
        }
    }
}

impl<S: BlockService> Conn<S> {
    /// Takes requests until the client says goodbye, goes away or breaks the protocol.
    async fn read_requests(self: &Rc<Self>, inbox: &mut Inbox) -> Result<(), InboxError> {
        while let Some(request) = inbox.request().await? {
            let command = match request.judge(&self.shared.export, self.session.structured) {
                Verdict::Disconnect => return Ok(()),
                Verdict::Serve(_) if self.shared.phase() != Phase::Serving => Err(NbdError::Shutdown),
                Verdict::Serve(command) => Ok(command),
                Verdict::Refuse(error) => Err(error),
            };
            self.outbox.room(self.shared.limits.requests_per_connection).await;
            match command {
                Ok(command) => self.start(&request, command, inbox).await?,
                Err(error) => {
                    inbox.skip(request.payload_bytes()).await?;
                    self.outbox.begin();
                    self.outbox.push(request.cookie, self.error(&request, error));
                }
            }
        }
        Ok(())
    }

    /// Takes what a valid command needs, payload and memory, and hands it to a worker.
    async fn start(self: &Rc<Self>, request: &Request, command: Command, inbox: &mut Inbox) -> Result<(), NetError> {
        let work = match command {
            Command::Read { fragment } => Work::Read { fragment, charge: self.charge_read(request).await },
            Command::Write { fua } => {
                let (payload, charge) =
                    inbox.payload(request.len as usize, &self.writes, &self.shared.pressure).await?;
                Work::Write { payload, charge, fua }
            }
            Command::Flush => Work::Flush,
            Command::Trim { fua } => Work::Trim { fua },
            Command::WriteZeroes { fua } => Work::WriteZeroes { fua },
        };
        self.outbox.begin();
        let conn = self.clone();
        self.workers.start(Job { request: *request, work }, move |job| {
            let conn = conn.clone();
            async move { conn.execute(job).await }
        });
        Ok(())
    }

    /// The buffers that the service will take for a read: whole blocks, of the smallest class that fits.
    async fn charge_read(&self, request: &Request) -> Charge {
        let (chunk, count) = read_split(request.len);
        let bytes = ((request.offset % BLOCK_BYTES_U64) as usize + chunk as usize).next_multiple_of(BLOCK_BYTES);
        let class = self.reads.iter().find(|(class, _)| *class >= bytes);
        let (class, account) = class.expect("limits were checked: the longest chunk has a class");
        self.shared.pressure.charge(account, *class as u64 * u64::from(count)).await
    }

    /// The reply that tells of an error.
    pub(super) fn error(&self, request: &Request, error: NbdError) -> Reply {
        debug!("NBD request refused or failed: {error:?} for {request:?}");
        if self.session.structured { Reply::Error { error } } else { Reply::Simple { error: Some(error) } }
    }
}
