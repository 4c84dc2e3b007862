//! Tests of executor and devices: that they do what their heads promise, and that the hard cases do occur.

use super::*;
use crate::env::Env;
use crate::io::{Buf, Disk, IoError};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

fn device(sim: &Sim, plan: FaultPlan) -> SimDevice {
    SimDevice::new(sim, DeviceConfig::new("disk", 1 << 20), Medium::default(), plan)
}

async fn put(disk: &SimDisk, offset: u64, byte: u8, len: usize, fua: bool) -> Result<(), IoError> {
    let mut buf = Buf::unpooled(len);
    buf.fill(byte);
    disk.write(offset, vec![buf.freeze()], fua).await
}

async fn get(disk: &SimDisk, offset: u64, len: usize) -> Result<Vec<u8>, IoError> {
    let (result, buf) = disk.read(offset, Buf::unpooled(len)).await;
    result.map(|()| buf.to_vec())
}

/// Runs `seeds` worlds with a device and collects what each leaves.
fn worlds<T: Ord + 'static, F: Future<Output = ()> + 'static>(
    seeds: std::ops::Range<u64>,
    plan: FaultPlan,
    run: impl Fn(SimDisk) -> F,
    look: impl Fn(&SimDevice) -> T,
) -> BTreeSet<T> {
    let world = |seed| {
        let sim = Sim::new(seed);
        let device = device(&sim, plan.clone());
        let env = sim.group("writer");
        let done = sim.start(&env, run(device.open(&env)));
        sim.run_until(|| done.is_done()).expect("no hang");
        sim.kill(&env);
        device.power_cut();
        look(&device)
    };
    seeds.map(world).collect()
}

#[test]
fn virtual_time_passes_only_when_all_wait() {
    let sim = Sim::new(1);
    let env = sim.env();
    let order = Rc::new(RefCell::new(Vec::new()));
    for (name, delay_ns) in [("late", 3_000_000_000_000), ("soon", 5)] {
        let (env, order) = (env.clone(), order.clone());
        sim.env().spawn(async move {
            env.sleep(delay_ns).await;
            order.borrow_mut().push((name, env.now_ns()));
        });
    }
    sim.run(async move { env.sleep(3_000_000_000_001).await }).expect("ends");
    assert_eq!(*order.borrow(), [("soon", 5), ("late", 3_000_000_000_000)]);
}

#[test]
fn a_dropped_sleep_does_not_move_the_clock() {
    let sim = Sim::new(1);
    let env = sim.env();
    sim.run(async move {
        let mut long = Box::pin(env.sleep(1 << 40));
        futures_util::future::poll_fn(|cx| std::task::Poll::Ready(long.as_mut().poll(cx).is_pending())).await;
    })
    .expect("ends");
    sim.run_for(10).expect("ends");
    assert_eq!(sim.progress().2, 10);
}

#[test]
fn stalls_busy_loops_and_crawls_are_failures() {
    let sim = Sim::new(2);
    let stall = sim.run(std::future::pending::<()>()).expect_err("a stall");
    assert!(matches!(stall, SimFailure::Stall { .. }), "{stall}");
    assert!(stall.to_string().contains("tests.rs"), "names the place that spawned: {stall}");

    let sim = Sim::new(2);
    let env = sim.env();
    let busy = sim.run(async move {
        loop {
            env.yield_now().await;
        }
    });
    assert!(matches!(busy, Err(SimFailure::BusyLoop { .. })), "{busy:?}");

    let sim = Sim::new(2);
    let env = sim.env();
    let crawl = sim.run(async move {
        loop {
            env.sleep(1_000_000_000).await;
        }
    });
    assert!(matches!(crawl, Err(SimFailure::TimeLimit { .. })), "{crawl:?}");
}

#[test]
fn yield_now_lets_every_ready_task_run_once() {
    for seed in 0..50 {
        let sim = Sim::new(seed);
        let env = sim.env();
        let ran = Rc::new(Cell::new(0));
        let count = ran.clone();
        sim.run(async move {
            for _ in 0..10 {
                let count = count.clone();
                env.spawn(async move { count.set(count.get() + 1) });
            }
            env.yield_now().await;
            assert_eq!(count.get(), 10, "seed {seed}");
        })
        .expect("ends");
        assert_eq!(ran.get(), 10);
    }
}

#[test]
fn the_order_of_tasks_depends_on_the_seed_alone() {
    let order = |seed| {
        let sim = Sim::new(seed);
        let env = sim.env();
        let order = Rc::new(RefCell::new(Vec::new()));
        for number in 0..5 {
            let (task_env, order) = (env.clone(), order.clone());
            env.spawn(async move {
                task_env.yield_point().await;
                order.borrow_mut().push(number);
            });
        }
        sim.run_until_stalled().expect("ends");
        assert_eq!(order.borrow().len(), 5);
        let order = order.borrow().clone();
        (order, sim.digest())
    };
    let orders: BTreeSet<_> = (0..200).map(order).collect();
    assert_eq!(orders, (0..200).map(order).collect());
    let distinct: BTreeSet<_> = orders.into_iter().map(|(order, _)| order).collect();
    assert!(distinct.len() > 60, "{} of 120 orders in 200 seeds", distinct.len());
}

#[test]
fn a_killed_group_is_gone_and_its_destructors_reach_nothing() {
    struct Zombie(SimEnv, Rc<Cell<bool>>);
    impl Drop for Zombie {
        fn drop(&mut self) {
            let ran = self.1.clone();
            self.0.spawn(async move { ran.set(true) });
        }
    }
    let sim = Sim::new(5);
    let device = device(&sim, FaultPlan::default());
    let env = sim.group("victim");
    let ran = Rc::new(Cell::new(false));
    let (disk, zombie, sleeper) = (device.open(&env), Zombie(env.clone(), ran.clone()), env.clone());
    let done = sim.start(&env, async move {
        let _zombie = zombie;
        put(&disk, 0, 1, 512, false).await.expect("alive");
        sleeper.sleep(1 << 50).await;
    });
    sim.run_for(1_000_000_000).expect("the root goes on");
    sim.kill(&env);
    sim.run_for(1_000_000_000).expect("the root goes on");
    assert!(!done.is_done() && !ran.get());
    assert_eq!(device.peek(0, 1), [1], "what a process wrote outlives it");
    assert_eq!(sim.progress().2, 2_000_000_000, "timers of the dead are gone");
}

#[test]
fn breakpoints_stop_in_the_middle() {
    let run = |at| {
        let sim = Sim::new(5);
        let device = device(&sim, FaultPlan::default());
        let env = sim.group("writer");
        let disk = device.open(&env);
        let done = sim.start(&env, async move {
            for number in 0..10 {
                put(&disk, number * 512, 1, 512, false).await.expect("works");
            }
        });
        sim.set_break(Some(at));
        let stop = sim.run_until(|| done.is_done()).expect("no hang");
        (stop, device.counters().writes)
    };
    assert_eq!(run(BreakAt::DeviceEvent(7)), (Stop::Break, 4));
    assert_eq!(run(BreakAt::DeviceEvent(21)), (Stop::Done, 10));
    assert_eq!(run(BreakAt::TimeNs(1)), (Stop::Break, 1));
    assert_eq!(run(BreakAt::Poll(2)).0, Stop::Break);
}

#[test]
fn flushed_and_fua_writes_survive_and_others_may_not() {
    let run = |disk: SimDisk| async move {
        put(&disk, 0, 1, 512, false).await.expect("works");
        disk.flush().await.expect("works");
        put(&disk, 512, 2, 512, true).await.expect("works");
        put(&disk, 1024, 3, 512, false).await.expect("works");
    };
    let look = |device: &SimDevice| [device.peek(0, 1)[0], device.peek(512, 1)[0], device.peek(1024, 1)[0]];
    assert_eq!(worlds(0..100, FaultPlan::default(), run, look), [[1, 2, 0], [1, 2, 3]].into());
}

#[test]
fn a_sector_holds_any_version_since_its_last_flush_and_none_older() {
    let run = |disk: SimDisk| async move {
        for byte in 1..=6 {
            put(&disk, 0, byte, 512, byte == 3).await.expect("works");
        }
    };
    assert_eq!(worlds(0..300, FaultPlan::default(), run, |device| device.peek(0, 1)[0]), [3, 4, 5, 6].into());
}

#[test]
fn a_flush_covers_only_what_had_completed() {
    let run = |disk: SimDisk| async move {
        let (write, flush) = futures_util::future::join(put(&disk, 0, 1, 512, false), disk.flush()).await;
        write.and(flush).expect("works");
    };
    assert_eq!(worlds(0..100, FaultPlan::default(), run, |device| device.peek(0, 1)[0]), [0, 1].into());
}

#[test]
fn tears_happen_at_the_atomic_unit() {
    let run = |disk: SimDisk| async move { put(&disk, 4096, 1, 8192, false).await.expect("works") };
    let look = |device: &SimDevice| {
        let bytes = device.peek(4096, 8192);
        let sectors: Vec<bool> = bytes.chunks(512).map(|sector| sector[0] == 1).collect();
        assert!(bytes.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])), "no torn sector");
        sectors
    };
    let plan = |atomic| FaultPlan { atomic, ..FaultPlan::default() };
    let by_sector = worlds(0..400, plan(AtomicUnit::Sector), run, look);
    assert!(by_sector.len() > 40, "{} patterns", by_sector.len());
    let by_block = worlds(0..400, plan(AtomicUnit::Block), run, look);
    let halves = by_block.iter().all(|sectors| sectors[..8].iter().all(|sector| *sector == sectors[0]));
    assert!(by_block.len() == 4 && halves, "{by_block:?}");
    assert_eq!(worlds(0..400, plan(AtomicUnit::Write), run, look).len(), 2);
}

#[test]
fn lying_devices_lose_what_they_promised() {
    let plan = FaultPlan { lie_flush_ppm: 1_000_000, lie_fua_ppm: 1_000_000, ..FaultPlan::default() };
    let run = |disk: SimDisk| async move {
        put(&disk, 0, 1, 512, true).await.expect("says so");
        disk.flush().await.expect("says so");
    };
    assert_eq!(worlds(0..50, plan, run, |device| device.peek(0, 1)[0]), [0, 1].into());
}

#[test]
fn a_failed_flush_may_have_lost_the_data_for_good() {
    let plan = FaultPlan {
        nth: vec![NthFault { op: OpKind::Flush, nth: 1, forever: false, error: IoError::Medium }],
        flush_error_drops: true,
        ..FaultPlan::default()
    };
    let run = |disk: SimDisk| async move {
        put(&disk, 0, 1, 512, false).await.expect("works");
        assert_eq!(disk.flush().await, Err(IoError::Medium));
        put(&disk, 512, 2, 512, false).await.expect("works");
        disk.flush().await.expect("the second works");
    };
    let look = |device: &SimDevice| [device.peek(0, 1)[0], device.peek(512, 1)[0]];
    assert_eq!(worlds(0..50, plan, run, look), [[0, 2], [1, 2]].into());
}

#[test]
fn errors_come_by_number_and_heal_or_stay() {
    let sim = Sim::new(9);
    let nth = |op, nth, forever| NthFault { op, nth, forever, error: IoError::Medium };
    let plan =
        FaultPlan { nth: vec![nth(OpKind::Read, 2, false), nth(OpKind::Write, 3, true)], ..FaultPlan::default() };
    let device = device(&sim, plan);
    let disk = device.open(&sim.env());
    let handle = device.clone();
    sim.run(async move {
        let mut reads = Vec::new();
        let mut writes = Vec::new();
        for _ in 0..4 {
            reads.push(get(&disk, 0, 512).await.is_ok());
            writes.push(put(&disk, 0, 1, 512, false).await.is_ok());
        }
        assert_eq!((reads, writes), (vec![true, false, true, true], vec![true, true, false, false]));

        handle.set_plan(FaultPlan::default());
        handle.make_unreadable(1024..1536);
        assert_eq!(get(&disk, 0, 4096).await, Err(IoError::Medium));
        assert!(get(&disk, 0, 1024).await.is_ok());
        put(&disk, 1024, 1, 512, false).await.expect("heals");
        assert!(get(&disk, 0, 4096).await.is_ok());

        handle.vanish(false);
        assert_eq!(put(&disk, 0, 9, 512, false).await, Err(IoError::Gone));
        assert_eq!(get(&disk, 0, 512).await, Err(IoError::Gone));
        handle.come_back();
        assert_eq!(get(&disk, 0, 512).await.expect("is back")[0], 1);
        handle.set_read_only(true);
        assert_eq!(put(&disk, 0, 9, 512, false).await, Err(IoError::ReadOnly));
    })
    .expect("ends");
}

#[test]
fn silent_faults_do_strike() {
    let sim = Sim::new(11);
    let device = device(&sim, FaultPlan { lost_write_ppm: 1_000_000, ..FaultPlan::default() });
    let disk = device.open(&sim.env());
    let handle = device.clone();
    sim.run(async move {
        put(&disk, 0, 1, 512, true).await.expect("says so");
        assert_eq!(handle.peek(0, 1), [0], "lost");
        handle.set_plan(FaultPlan {
            misdirected_write_ppm: 1_000_000,
            area: Some(4096..65536),
            ..FaultPlan::default()
        });
        put(&disk, 0, 1, 512, true).await.expect("outside the area");
        put(&disk, 4096, 2, 512, true).await.expect("says so");
        let found: Vec<usize> =
            (0..128).filter(|sector| handle.peek(sector * 512, 1)[0] == 2).map(|s| s as usize).collect();
        assert_eq!(found.len(), 1);
        assert!(handle.peek(0, 1) == [1] && (8..128).contains(&found[0]));
        handle.set_plan(FaultPlan { rot_ppm: 1_000_000, ..FaultPlan::default() });
        let bits: u32 = get(&disk, 65536, 4096).await.expect("silent").iter().map(|byte| byte.count_ones()).sum();
        assert_eq!(bits, 1);
        handle.set_plan(FaultPlan { thin_pages_max: Some(handle.view().pages_used()), ..FaultPlan::default() });
        assert_eq!(put(&disk, 512 << 10, 1, 4096, false).await, Err(IoError::NoSpace));
        put(&disk, 0, 1, 4096, false).await.expect("that page exists");
    })
    .expect("ends");
}

#[test]
fn requests_of_a_killed_process_take_effect_or_not() {
    let outcome = |seed| {
        let sim = Sim::new(seed);
        let device = device(&sim, FaultPlan::default());
        let env = sim.group("victim");
        let disk = device.open(&env);
        let done = sim.start(&env, async move {
            put(&disk, 0, 1, 512, false).await.expect("works");
            put(&disk, 4096, 2, 1024, false).await.expect("works");
        });
        sim.set_break(Some(BreakAt::DeviceEvent(3)));
        sim.run_until(|| done.is_done()).expect("no hang");
        sim.kill(&env);
        device.settle_killed();
        let look = |device: &SimDevice| [device.peek(0, 1)[0], device.peek(4096, 1)[0], device.peek(4608, 1)[0]];
        let settled = look(&device);
        sim.run_for(1 << 40).expect("runs on");
        assert_eq!(look(&device), settled, "nothing lands later");
        settled
    };
    let outcomes: BTreeSet<_> = (0..200).map(outcome).collect();
    assert_eq!(outcomes, [[1, 0, 0], [1, 0, 2], [1, 2, 0], [1, 2, 2]].into());
}

#[test]
fn snapshots_give_every_image_a_power_cut_may_leave() {
    let sim = Sim::new(3);
    let device = device(&sim, FaultPlan::default());
    let env = sim.env();
    let disk = device.open(&env);
    sim.run(async move {
        put(&disk, 0, 1, 1024, true).await.expect("works");
        put(&disk, 0, 2, 512, false).await.expect("works");
        put(&disk, 0, 3, 1024, false).await.expect("works");
    })
    .expect("ends");
    let snapshot = device.snapshot();
    assert_eq!(snapshot.units(), 3);
    let image = |subset: usize| {
        let medium = snapshot.materialise(|unit| subset >> unit & 1 == 1);
        [medium.image(1024)[0], medium.image(1024)[512]]
    };
    let images: BTreeSet<_> = (0..8).map(image).collect();
    assert_eq!(images, [[1, 1], [1, 3], [2, 1], [2, 3], [3, 1], [3, 3]].into());
}

#[test]
fn the_same_seed_gives_the_same_digest() {
    let run = |seed| {
        let sim = Sim::new(seed);
        let plan =
            FaultPlan { read_error_ppm: 50_000, write_error_ppm: 50_000, rot_ppm: 50_000, ..FaultPlan::default() };
        let device = device(&sim, plan);
        let env = sim.group("writers");
        for task in 0..4u64 {
            let (disk, env) = (device.open(&env), env.clone());
            sim.start(&env.clone(), async move {
                loop {
                    let at = env.random_u64() % 64 * 4096;
                    // Errors are expected here; only the order of events matters.
                    let _ = put(&disk, at, task as u8, 4096, task == 0).await;
                    let _ = get(&disk, at, 4096).await;
                    if task == 1 {
                        let _ = disk.flush().await;
                    }
                }
            });
        }
        sim.set_break(Some(BreakAt::Poll(500)));
        sim.run_until(|| false).expect("no hang");
        sim.kill(&env);
        device.power_cut();
        (sim.digest(), device.stable().image(64 * 4096))
    };
    let digests: BTreeSet<u64> = (0..20).map(|seed| run(seed).0).collect();
    assert_eq!(digests.len(), 20);
    for seed in 0..20 {
        assert!(run(seed) == run(seed), "seed {seed} is not deterministic");
    }
}

/// Runs a conformance test in several worlds.
fn conform<F: Future<Output = ()> + 'static>(test: impl Fn(std::sync::Arc<SimDisk>) -> F) {
    for seed in 0..5 {
        let sim = Sim::new(seed);
        let config = DeviceConfig::new("disk", crate::io::conformance::SIZE_BYTES);
        let device = SimDevice::new(&sim, config, Medium::default(), FaultPlan::default());
        sim.run(test(std::sync::Arc::new(device.open(&sim.env())))).expect("no hang");
    }
}

crate::disk_conformance!(conformance, super::conform);
