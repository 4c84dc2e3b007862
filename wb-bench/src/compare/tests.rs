use super::*;

const SIZES: Sizes = Sizes { ssd: 256 << 20, disk: 2 << 30 };

fn names(workloads: &[Workload]) -> Vec<&str> {
    workloads.iter().map(|w| w.name.as_str()).collect()
}

#[test]
fn a_chosen_workload_brings_what_it_continues() {
    let list = workload::list(Scale::Quick, SIZES);
    let chosen = choose(list.clone(), &["seq-read".to_string(), "fsync-1".to_string()]).expect("known names");
    assert_eq!(names(&chosen), ["fsync-1", "mixed-warm", "cold-read", "seq-read"]);
    assert_eq!(choose(list.clone(), &[]).expect("all").len(), list.len());
    let unknown = choose(list, &["swim".to_string()]).expect_err("no such workload");
    assert!(format!("{unknown:#}").contains("swim"), "{unknown:#}");
}

#[test]
fn every_round_measures_every_system_in_another_order() {
    let workloads = workload::list(Scale::Quick, SIZES);
    let systems = [OURS, "bcache", "dm-cache", "raw-ssd", "raw-disk"];
    let jobs = jobs(&systems, &workloads, 2, SIZES, false, Transport::Ublk);
    assert_eq!(jobs.len(), 2 * systems.len());
    let order =
        |round: u32| jobs.iter().filter(|job| job.round == round).map(|job| job.system.as_str()).collect::<Vec<_>>();
    assert_eq!(order(0), systems);
    assert_ne!(order(0), order(1));
    let mut sorted = [order(0), order(1)];
    sorted.iter_mut().for_each(|order| order.sort_unstable());
    assert_eq!(sorted[0], sorted[1]);
    for job in &jobs {
        assert!(job.round == 0 || job.workloads.iter().all(|w| w.repeated));
        let raw = systems::is_raw(&job.system);
        assert!(!raw || job.workloads.iter().all(|w| w.on_raw), "a bare device is not asked for a cache's figures");
    }
}

#[test]
fn what_is_repeated_continues_only_what_is_repeated() {
    for scale in [Scale::Quick, Scale::Full] {
        let list = workload::list(scale, SIZES);
        for workload in list.iter().filter(|w| w.repeated) {
            if let Preparation::Continue(before) = &workload.preparation {
                assert!(list.iter().any(|w| w.name == *before && w.repeated), "{}", workload.name);
            }
        }
    }
}
