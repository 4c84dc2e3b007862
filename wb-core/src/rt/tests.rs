//! Tests of executor, reactor, timers and sockets. Disks have the conformance suite.
#![expect(clippy::disallowed_methods, reason = "other threads are what is tested here")]

use super::*;
use crate::io::Buf;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

const MS: u64 = 1_000_000;

fn runtime() -> Runtime {
    Runtime::new(Config::default()).expect("io_uring is permitted where the tests run")
}

/// Sets a flag when dropped.
struct OnDrop(Rc<Cell<bool>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

#[test]
fn tasks_run_and_return_results() {
    let sum = runtime().block_on(async {
        let handles: Vec<_> = (0..1000u64).map(|n| spawn(async move { n })).collect();
        let mut sum = 0;
        for handle in handles {
            sum += handle.await;
        }
        sum
    });
    assert_eq!(sum, 499_500);
}

#[test]
fn yield_now_lets_every_ready_task_run_once() {
    runtime().block_on(async {
        let log = Rc::new(RefCell::new(Vec::new()));
        for n in 0..300 {
            let log = log.clone();
            let _detached = spawn(async move {
                log.borrow_mut().push(n);
                yield_now().await;
                log.borrow_mut().push(1000 + n);
            });
        }
        assert!(log.borrow().is_empty());
        yield_now().await;
        assert_eq!(*log.borrow(), (0..300).collect::<Vec<_>>(), "each once, in order");
        yield_now().await;
        assert_eq!(log.borrow().len(), 600, "and each once more");
    });
}

#[test]
fn a_task_that_always_yields_does_not_starve_timers_and_io() {
    runtime().block_on(async {
        let stop = Rc::new(Cell::new(false));
        let seen = stop.clone();
        let spinner = spawn(async move {
            while !seen.get() {
                yield_now().await;
            }
        });
        sleep(5 * MS).await;
        let (a, b) = UnixStream::pair().expect("a socket pair");
        let (a, b) = (Stream::from(a), Stream::from(b));
        let receiver = spawn(async move { b.recv_exact(Buf::unpooled(5), 0..5).await.1.to_vec() });
        sleep(MS).await;
        a.send_bytes(b"hello").await.expect("sent");
        assert_eq!(receiver.await, b"hello");
        stop.set(true);
        spinner.await;
    });
}

#[test]
fn timers_fire_in_order_and_not_early() {
    runtime().block_on(async {
        let start = now_ns();
        let log = Rc::new(RefCell::new(Vec::new()));
        let handles: Vec<_> = [30u64, 10, 20, 10]
            .into_iter()
            .map(|ms| {
                let log = log.clone();
                spawn(async move {
                    sleep(ms * MS).await;
                    assert!(now_ns() >= start + ms * MS);
                    log.borrow_mut().push(ms);
                })
            })
            .collect();
        for handle in handles {
            handle.await;
        }
        assert_eq!(*log.borrow(), [10, 10, 20, 30]);
        assert!(now_ns() - start < 1000 * MS, "timers wake a sleeping thread");
    });
}

#[test]
fn timeout_drops_the_loser() {
    runtime().block_on(async {
        let dropped = Rc::new(Cell::new(false));
        let guard = OnDrop(dropped.clone());
        let never = async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        };
        assert_eq!(timeout(2 * MS, never).await, Err(Elapsed));
        assert!(dropped.get());
        assert_eq!(timeout(1000 * MS, async { 7 }).await, Ok(7));
    });
}

#[test]
fn an_idle_runtime_uses_no_cpu_time() {
    runtime().block_on(async {
        let cpu_ns = || {
            let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock");
            time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
        };
        let before = cpu_ns();
        sleep(200 * MS).await;
        let used = cpu_ns() - before;
        assert!(used < 5 * MS, "{used} ns of CPU time in 200 ms of sleep");
    });
}

#[test]
fn wakers_may_be_called_from_other_threads() {
    runtime().block_on(async {
        // The waker goes over; the flag comes back.
        for round in 0..200u32 {
            let flag = Arc::new(AtomicU32::new(0));
            let (sender, receiver) = std::sync::mpsc::channel::<Waker>();
            let set = flag.clone();
            let thread = thread::spawn(move || {
                let waker = receiver.recv().expect("a waker");
                if round % 2 == 0 {
                    thread::sleep(Duration::from_micros(u64::from(round) * 2));
                }
                set.store(1, Ordering::Release);
                waker.wake();
            });
            let task = spawn(async move {
                let mut sent = false;
                poll_fn(|cx| {
                    if flag.load(Ordering::Acquire) == 1 {
                        return Poll::Ready(());
                    }
                    if !sent {
                        sender.send(cx.waker().clone()).expect("the thread listens");
                        sent = true;
                    }
                    Poll::Pending
                })
                .await;
            });
            assert_eq!(timeout(10_000 * MS, task).await, Ok(()), "round {round}");
            thread.join().expect("it does not panic");
        }
    });
}

#[test]
fn wakers_outlive_the_runtime() {
    let dropped = Rc::new(Cell::new(false));
    let guard = OnDrop(dropped.clone());
    let wakers = Rc::new(RefCell::new(Vec::new()));
    let keep = wakers.clone();
    let runtime = runtime();
    let _detached = runtime.spawn(async move {
        let _guard = guard;
        poll_fn(|cx| {
            keep.borrow_mut().push(cx.waker().clone());
            Poll::<()>::Pending
        })
        .await;
    });
    runtime.block_on(yield_now());
    assert!(!dropped.get());
    drop(runtime);
    assert!(dropped.get(), "the end of the runtime drops its tasks");
    let waker = wakers.borrow_mut().pop().expect("the task ran");
    thread::spawn(move || waker.wake()).join().expect("a late wake-up does nothing");
}

#[test]
fn a_runtime_ends_while_other_threads_wake_its_tasks() {
    for _ in 0..50 {
        let wakers = Arc::new(std::sync::Mutex::new(Vec::<Waker>::new()));
        let runtime = runtime();
        for _ in 0..20 {
            let wakers = wakers.clone();
            let _detached = runtime.spawn(poll_fn(move |cx| {
                wakers.lock().expect("a lock").push(cx.waker().clone());
                Poll::<()>::Pending
            }));
        }
        runtime.block_on(yield_now());
        let wakers = std::mem::take(&mut *wakers.lock().expect("a lock"));
        let thread = thread::spawn(move || wakers.into_iter().for_each(Waker::wake));
        drop(runtime);
        thread.join().expect("no panic");
    }
}

#[test]
fn other_threads_send_work() {
    let thread = RuntimeThread::start("worker", Config::default(), || async {
        let mut count = 0u64;
        while TOTAL.load(Ordering::Acquire) < 1000 {
            sleep(MS).await;
            count += 1;
        }
        count
    })
    .expect("a runtime");
    static TOTAL: AtomicU32 = AtomicU32::new(0);
    for _ in 0..1000 {
        let call = || {
            let _detached = spawn(async {
                yield_now().await;
                TOTAL.fetch_add(1, Ordering::AcqRel);
            });
        };
        thread.remote().run(call).expect("it runs");
    }
    let remote = thread.remote().clone();
    thread.join().expect("no panic");
    assert_eq!(TOTAL.load(Ordering::Acquire), 1000);
    assert_eq!(remote.run(|| ()), Err(RuntimeGone));
}

#[test]
fn more_operations_than_the_queues_hold() {
    let runtime = Runtime::new(Config { sq_entries: 4, cq_entries: 8 }).expect("io_uring");
    runtime.block_on(async {
        // All in one turn: 500 times more than the submission queue takes, 250 times more than completions fit.
        let nops: Vec<_> = (0..2000)
            .map(|_| {
                let entry = io_uring::opcode::Nop::new().build();
                // SAFETY: the entry points to nothing.
                spawn(async move { unsafe { submit(entry) }.await.result })
            })
            .collect();
        for nop in nops {
            assert_eq!(nop.await, 0);
        }
        // And such that complete all at once, later, while nobody takes completions.
        let (reader, writer) = UnixStream::pair().expect("a socket pair");
        let poll = PollFd::new(reader);
        let polls: Vec<_> = (0..500)
            .map(|_| {
                let poll = poll.clone();
                spawn(async move { poll.readable().await.expect("readiness") })
            })
            .collect();
        sleep(MS).await;
        (&writer).write_all(b"x").expect("written");
        for poll in polls {
            timeout(10_000 * MS, poll).await.expect("no completion is lost");
        }
    });
}

#[test]
fn a_dropped_operation_is_cancelled_and_its_slot_reused() {
    runtime().block_on(async {
        let (a, b) = UnixStream::pair().expect("a socket pair");
        let (a, b) = (Stream::from(a), Stream::from(b));
        for _ in 0..100 {
            assert!(timeout(MS / 10, a.recv_exact(Buf::unpooled(1), 0..1)).await.is_err());
        }
        sleep(MS).await; // The last cancellation goes out at the end of the turn.
        b.send_bytes(b"z").await.expect("sent");
        let (result, buf) = a.recv_exact(Buf::unpooled(1), 0..1).await;
        result.expect("no earlier receive took it");
        assert_eq!(&buf[..], b"z");
    });
}

#[test]
fn a_runtime_ends_with_operations_in_flight() {
    let (a, _b) = UnixStream::pair().expect("a socket pair");
    let stream = Stream::from(a);
    let start = now_ns();
    let runtime = runtime();
    runtime.block_on(async {
        for _ in 0..10 {
            let stream = stream.clone();
            let _detached = spawn(async move {
                let _ = stream.recv(Buf::unpooled(4096), 0..4096).await;
            });
        }
        yield_now().await;
    });
    drop(runtime);
    assert!(now_ns() - start < 1000 * MS, "receives are cancelled, not waited for");
}

#[test]
fn sockets_carry_large_messages_in_pieces() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("socket");
    runtime().block_on(async {
        let listener = Listener::unix(&path, 0o600).expect("listening");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).expect("metadata").permissions());
        assert_eq!(mode & 0o777, 0o600);
        const PIECES: usize = 3000;
        let client = thread::spawn({
            let path = path.clone();
            move || {
                let mut stream = UnixStream::connect(path).expect("connected");
                let mut data = vec![0; PIECES * (1000 + 4)];
                stream.read_exact(&mut data).expect("everything arrives");
                stream.write_all(&data).expect("and goes back");
                data
            }
        });
        let stream = listener.accept().await.expect("a connection");
        assert!(stream.peer().starts_with("process "), "{}", stream.peer());
        let mut payload = Buf::unpooled(1000 * PIECES);
        payload.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 7) as u8);
        let payload = payload.freeze();
        let mut queue = SendQueue::new();
        let mut expected = Vec::new();
        for n in 0..PIECES {
            let piece = payload.slice(n * 1000..n * 1000 + 1000);
            expected.extend_from_slice(&(n as u32).to_be_bytes());
            expected.extend_from_slice(&piece);
            queue.push_bytes(&(n as u32).to_be_bytes());
            queue.push_slice(piece);
        }
        let (result, queue) = stream.send(queue).await;
        result.expect("sent");
        assert!(queue.is_empty());
        let (result, echo) = stream.recv_exact(Buf::unpooled(expected.len() + 8), 8..expected.len() + 8).await;
        result.expect("received");
        assert!(echo[8..] == expected, "the same comes back");
        assert!(client.join().expect("no panic") == expected);
        let (result, _) = stream.recv_exact(echo, 0..4).await;
        assert!(matches!(result, Err(NetError::Closed { received: 0 })), "{result:?}");
    });
    assert!(!path.exists(), "the socket goes with its listener");
}

#[test]
fn sockets_of_the_dead_are_replaced_and_of_the_living_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("socket");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    assert!(path.exists(), "left behind as by a killed server");
    let listener = Listener::unix(&path, 0o600).expect("replaced");
    assert!(matches!(Listener::unix(&path, 0o600), Err(NetError::InUse(_))));
    drop(listener);
    std::fs::write(&path, "precious").expect("written");
    assert!(matches!(Listener::unix(&path, 0o600), Err(NetError::NotASocket(_))));
    assert_eq!(std::fs::read(&path).expect("still there"), b"precious");
}

#[test]
fn tcp_closes_in_the_middle_of_a_message() {
    runtime().block_on(async {
        let listener = Listener::tcp("127.0.0.1:0".parse().expect("an address")).expect("listening");
        let address = listener.address().expect("TCP has one");
        let client = thread::spawn(move || {
            let mut stream = std::net::TcpStream::connect(address).expect("connected");
            stream.write_all(b"abc").expect("written");
        });
        let stream = listener.accept().await.expect("a connection");
        assert!(stream.peer().starts_with("127.0.0.1:"), "{}", stream.peer());
        let (result, buf) = stream.recv_exact(Buf::unpooled(16), 0..16).await;
        assert!(matches!(result, Err(NetError::Closed { received: 3 })), "{result:?}");
        assert_eq!(&buf[..3], b"abc");
        client.join().expect("no panic");
        // Sending to a peer that is gone is an error, not a signal.
        let mut result = Ok(());
        for _ in 0..10 {
            result = stream.send_bytes(&[0; 4096]).await;
            sleep(MS).await;
        }
        assert!(matches!(result, Err(NetError::Closed { .. })), "{result:?}");
    });
}

#[test]
fn shutdown_ends_a_pending_receive() {
    runtime().block_on(async {
        let (a, _b) = UnixStream::pair().expect("a socket pair");
        let stream = Stream::from(a);
        let receiver = {
            let stream = stream.clone();
            spawn(async move { stream.recv(Buf::unpooled(16), 0..16).await.0 })
        };
        sleep(MS).await;
        stream.shutdown(Shutdown::Both).expect("shut down");
        let result = timeout(10_000 * MS, receiver).await.expect("it ends");
        assert!(matches!(result, Ok(0)), "{result:?}");
    });
}

#[test]
fn signals_arrive_as_data() {
    // In a thread of its own: the mask and the signal are that thread's.
    let thread = thread::spawn(|| {
        let signals = Signals::new(&[nix::sys::signal::Signal::SIGUSR2]).expect("a signalfd");
        runtime().block_on(async {
            assert!(timeout(MS, signals.next()).await.is_err(), "none yet");
            // SAFETY: sends a signal that this thread has blocked to this thread.
            let sent = unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
            assert_eq!(sent, 0);
            let signal = timeout(10_000 * MS, signals.next()).await.expect("in time").expect("readable");
            assert_eq!(signal, nix::sys::signal::Signal::SIGUSR2);
        });
    });
    thread.join().expect("no panic");
}

#[test]
fn a_panic_of_a_task_comes_out_of_block_on() {
    let runtime = runtime();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        runtime.block_on(async {
            let _detached = spawn(async { panic!("as planned") });
            sleep(10_000 * MS).await;
        })
    }));
    assert_eq!(result.expect_err("it panics").downcast_ref::<&str>(), Some(&"as planned"));
    assert_eq!(runtime.block_on(async { spawn(async { 3 }).await }), 3, "the runtime is still of use");
}

/// Denies a system call to the calling thread, as container runtimes do.
fn deny(syscall: libc::c_long, errno: i32) {
    let load = libc::sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: 0 };
    let compare = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut filter = [
        load,
        libc::sock_filter { code: compare, jt: 0, jf: 1, k: syscall as u32 },
        libc::sock_filter { code: answer, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | errno as u32 },
        libc::sock_filter { code: answer, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the arguments are as prctl(2) wants them; the kernel copies the program.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

#[test]
fn without_permission_the_error_names_cause_and_next_step() {
    let denied_with = |errno| {
        let thread = thread::spawn(move || {
            deny(libc::SYS_io_uring_setup, errno);
            Runtime::new(Config::default()).err().expect("it is denied").to_string()
        });
        thread.join().expect("no panic")
    };
    let message = denied_with(libc::EPERM);
    assert!(message.contains("seccomp") && message.contains("allow io_uring_setup"), "{message}");
    let message = denied_with(libc::ENOSYS);
    assert!(message.contains("CONFIG_IO_URING"), "{message}");
    let message = RtError::Disabled { level: 2 }.to_string();
    assert!(message.contains("kernel.io_uring_disabled is 2; set it to 0") && !message.contains("group"), "{message}");
    assert!(RtError::Disabled { level: 1 }.to_string().contains("io_uring_group"));
}

#[test]
fn descriptors_stay_open_below_queued_operations() {
    runtime().block_on(async {
        let (a, b) = UnixStream::pair().expect("a socket pair");
        let stream = Stream::from(OwnedFd::from(a));
        let receiver = spawn(async move { stream.recv(Buf::unpooled(8), 0..8).await });
        // Runs the receiver up to its queued entry, which has not reached the kernel yet; only it owns the socket now.
        yield_now().await;
        (&b).write_all(b"there").expect("the other end is open");
        let (result, buf) = receiver.await;
        assert_eq!(&buf[..result.expect("received")], b"there");
    });
}

/// Without DEFER_TASKRUN, and without COOP_TASKRUN too, as on older kernels.
#[test]
fn every_way_to_set_up_a_ring_works() {
    for variant in 0..4 {
        super::reactor::FIRST_VARIANT.set(variant);
        let runtime = Runtime::new(Config { sq_entries: 4, cq_entries: 8 }).expect("io_uring");
        let remote = runtime.remote();
        runtime.block_on(async {
            let (a, b) = UnixStream::pair().expect("a socket pair");
            let (a, peer) = (Stream::from(a), Stream::from(b));
            let b = peer.clone();
            let echo = spawn(async move {
                for _ in 0..100 {
                    let (result, buf) = b.recv_exact(Buf::unpooled(5), 0..5).await;
                    result.expect("received");
                    b.send_bytes(&buf).await.expect("sent");
                }
            });
            let sleepers: Vec<_> = (0..50).map(|n| spawn(sleep(n * MS / 10))).collect();
            for _ in 0..100 {
                a.send_bytes(b"hello").await.expect("sent");
                let (result, buf) = a.recv_exact(Buf::unpooled(5), 0..5).await;
                assert!(result.is_ok() && buf[..] == *b"hello", "variant {variant}");
            }
            echo.await;
            for sleeper in sleepers {
                sleeper.await;
            }
            let woken = Arc::new(AtomicU32::new(0));
            let thread = thread::spawn({
                let woken = woken.clone();
                move || {
                    thread::sleep(Duration::from_millis(5));
                    remote.run(move || woken.store(1, Ordering::Release)).expect("it runs");
                }
            });
            let waiting = async {
                while woken.load(Ordering::Acquire) == 0 {
                    sleep(MS).await;
                }
            };
            timeout(10_000 * MS, waiting).await.expect("the other thread is heard");
            thread.join().expect("no panic");
            assert!(timeout(MS, a.recv(Buf::unpooled(1), 0..1)).await.is_err(), "nothing comes");
            sleep(MS).await; // The cancellation goes out at the end of the turn.
            peer.send_bytes(b"x").await.expect("sent");
            let received = timeout(10_000 * MS, a.recv(Buf::unpooled(1), 0..1)).await;
            assert!(matches!(received, Ok((Ok(1), _))), "variant {variant}: the receive that timed out was cancelled");
        });
    }
}
