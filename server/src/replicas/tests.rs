//! Places and figures of replicas that no process stands behind.

use super::*;

/// Replicas that answer, each with room for `slots` requests and `queue` that wait.
fn answering(count: usize, slots: usize, queue: usize) -> Arc<Replicas> {
    answering_until_idle(count, slots, queue, None)
}

fn answering_until_idle(count: usize, slots: usize, queue: usize, idle_unload: Option<Duration>) -> Arc<Replicas> {
    let settings = ReplicaSettings {
        model: "m".into(),
        count,
        command: Arc::new(|_| Command::new("true")),
        slots,
        queue,
        policy: Policy::Spread,
        patience: Duration::from_secs(1),
        idle_unload,
    };
    let replicas = Replicas::new(settings);
    for member in &replicas.members {
        let mut now = member.now();
        (now.state, now.address, now.life) = (State::Ready, Some(SocketAddr::from(([127, 0, 0, 1], 1))), 1);
    }
    Arc::new(replicas)
}

fn seat(replicas: &Arc<Replicas>, claim: Claim) -> Option<Seat> {
    let seat = replicas.seat(&Keys::default(), claim, &[]);
    assert!(seat.is_none() || replicas.members.iter().all(|member| member.load.load(Ordering::Relaxed) <= 3));
    seat
}

#[test]
fn whoever_has_nothing_is_let_in_where_another_fills_all_and_answers_take_no_place() {
    let replicas = answering(2, 1, 1);
    let owner = |key| Claim::Place(Some(Tenant::of_key(key)));
    let full: Vec<Seat> = (0..4).map(|_| seat(&replicas, owner(0)).expect("there is room")).collect();
    assert!(seat(&replicas, owner(0)).is_none() && seat(&replicas, Claim::Place(None)).is_none());
    assert!(!replicas.has_room(owner(0)) && replicas.has_room(owner(1)) && replicas.has_room(Claim::Answer));
    let other = seat(&replicas, owner(1)).expect("it has nothing");
    assert!(seat(&replicas, owner(1)).is_none(), "one beyond what there is");
    let load = || replicas.members.iter().map(|member| member.load.load(Ordering::Relaxed)).sum::<usize>();
    let answer = seat(&replicas, Claim::Answer).expect("it takes no place");
    assert_eq!(load(), 5);
    let mut changed = replicas.changed.subscribe();
    drop(answer);
    assert!(!changed.has_changed().unwrap());
    drop(other);
    assert!(changed.has_changed().unwrap(), "who waits for a place is told");
    changed.mark_unchanged();
    drop(full);
    assert!(changed.has_changed().unwrap() && load() == 0 && replicas.tenants().is_empty());
}

#[test]
fn addresses_without_keys_are_let_in_where_another_fills_all_but_not_without_bound() {
    let replicas = answering(1, 1, 1);
    let from = |last| Claim::Place(Some(Tenant::of_peer([10, 0, 0, last].into())));
    let _full: Vec<Seat> = (0..2).map(|_| seat(&replicas, from(1)).expect("there is room")).collect();
    assert!(seat(&replicas, from(1)).is_none());
    let _other = seat(&replicas, from(2)).expect("it has nothing");
    assert!(seat(&replicas, from(2)).is_none(), "one beyond what there is");
    replicas.members[0].load.fetch_add(1, Ordering::Relaxed);
    assert!(replicas.seat(&Keys::default(), from(3), &[]).is_none(), "twice the room is taken");
    replicas.members[0].load.fetch_sub(1, Ordering::Relaxed);
}

#[test]
fn a_process_that_has_just_ended_is_nobodys_choice() {
    let replicas = answering(2, 4, 0);
    let _busy: Vec<Seat> = (0..4).map(|_| seat(&replicas, Claim::Place(None)).unwrap()).collect();
    replicas.settle(0, |now| now.address = None);
    // Idle, and found to be lost by nobody yet.
    replicas.members[0].load.store(0, Ordering::Relaxed);
    assert_eq!(seat(&replicas, Claim::Place(None)).map(|seat| seat.replica), Some(1));
    replicas.members[0].load.store(2, Ordering::Relaxed);
}

#[test]
fn an_idle_one_is_unloaded_and_woken_once_for_those_who_wait() {
    let after = Duration::from_millis(20);
    let replicas = answering_until_idle(2, 1, 1, Some(after));
    let state = |replica: usize| replicas.members[replica].now().state;
    let busy = seat(&replicas, Claim::Place(None)).unwrap();
    let other = 1 - busy.replica;
    assert!(!replicas.unload(other, Duration::from_secs(60)), "not for so long");
    std::thread::sleep(2 * after);
    assert!(!replicas.unload(busy.replica, after), "it has a request");
    assert!(replicas.unload(other, after) && state(other) == State::Unloaded);
    assert!(!replicas.unload(other, after), "once");
    // What is full has another one loaded before all must wait.
    let _next = seat(&replicas, Claim::Place(None)).unwrap();
    assert_eq!((state(other), replicas.members[other].unloads.read()), (State::Starting, 1));
    drop(busy);

    let replicas = answering_until_idle(2, 1, 1, Some(after));
    std::thread::sleep(2 * after);
    assert!((0..2).all(|replica| replicas.unload(replica, after)));
    assert!(seat(&replicas, Claim::Place(None)).is_none());
    // It is not lost: somebody who asks will be answered.
    assert!(replicas.has_room(Claim::Place(None)) && replicas.is_healthy());
    assert_eq!(replicas.describe()["status"], "ok");
    assert!(replicas.wake() && replicas.wake(), "one comes");
    let states = || replicas.members.iter().map(|member| member.now().state).collect::<Vec<_>>();
    assert_eq!(states(), [State::Starting, State::Unloaded]);
    let waits: Vec<Waits> = (0..4).map(|_| replicas.wait_for_load().unwrap()).collect();
    assert!(replicas.wait_for_load().is_none(), "more than all could have");
    drop(waits);
    assert_eq!(replicas.waiting.load(Ordering::Relaxed), 0);
    // Nobody is waited for where none was unloaded.
    assert!(!answering(1, 1, 0).wake());
}

#[test]
fn sums_do_not_fall_when_a_process_ends_or_an_older_reading_comes_late() {
    let replicas = answering(2, 1, 1);
    let text = |n: u32| format!("# TYPE njoule_steps_total counter\nnjoule_steps_total{{}} {n}\n");
    let steps =
        || replicas.figures("").lines().find_map(|line| line.strip_prefix("njoule_steps_total{} ")?.parse().ok());
    replicas.take_figures(0, 1, text(5).as_bytes());
    replicas.take_figures(1, 1, text(7).as_bytes());
    assert_eq!(steps(), Some(12));
    replicas.take_figures(1, 1, text(6).as_bytes());
    assert_eq!(steps(), Some(12), "an older reading");
    replicas.settle(1, |now| (now.address, now.life) = (None, 2));
    assert_eq!(steps(), Some(12), "it has ended");
    // Of the process that has ended.
    replicas.take_figures(1, 1, text(8).as_bytes());
    replicas.settle(1, |now| now.address = Some(SocketAddr::from(([127, 0, 0, 1], 1))));
    replicas.take_figures(1, 2, text(1).as_bytes());
    assert_eq!(steps(), Some(13));
}
