//! Values that do, and values that do not.

use proptest::prelude::*;

use super::*;

/// What is said of one value on a machine of two Inferentia2 chips.
fn on_inf2(name: &str, value: &str) -> Option<Gravity> {
    let judged = judge(&Env::from_pairs([(name, value)]), 4, &[Chip::Inferentia2; 2]);
    let [judged] = &judged[..] else { panic!("{judged:?}") };
    judged.problem.as_ref().map(|(gravity, _)| *gravity)
}

#[test]
fn good_values_pass() {
    for (name, value) in [
        ("NEURON_RT_VISIBLE_CORES", "3"),
        ("NEURON_RT_VISIBLE_CORES", "0-3"),
        ("NEURON_RT_VISIBLE_CORES", "1,2,3"),
        ("NEURON_RT_VISIBLE_CORES", "0-1,2"),
        ("NEURON_RT_NUM_CORES", "0"),
        ("NEURON_RT_NUM_CORES", "4"),
        ("NEURON_LOGICAL_NC_CONFIG", "1"),
        ("NEURON_RT_EXEC_TIMEOUT", "30"),
        ("NEURON_RT_LOG_LEVEL", "warn"),
        ("NEURON_RT_STOCHASTIC_ROUNDING_EN", "0"),
        ("NEURON_RT_ROOT_COMM_ID", "10.0.0.1:63423"),
        ("NEURON_SCRATCHPAD_PAGE_SIZE", "1024"),
        ("NEURON_PLATFORM_TARGET_OVERRIDE", "inf2"),
    ] {
        assert_eq!(on_inf2(name, value), None, "{name}={value}");
    }
}

#[test]
fn values_that_stop_the_runtime_are_fatal_and_others_unwise() {
    use Gravity::{Fatal, Unwise};
    for (name, value, gravity) in [
        ("NEURON_RT_VISIBLE_CORES", "0,2", Fatal),
        ("NEURON_RT_VISIBLE_CORES", "3-1", Fatal),
        ("NEURON_RT_VISIBLE_CORES", "1,0", Fatal),
        ("NEURON_RT_VISIBLE_CORES", "two", Fatal),
        ("NEURON_RT_VISIBLE_CORES", "0-4", Fatal),
        ("NEURON_RT_NUM_CORES", "5", Fatal),
        ("NEURON_RT_NUM_CORES", "-1", Fatal),
        ("NEURON_LOGICAL_NC_CONFIG", "2", Fatal),
        ("NEURON_LOGICAL_NC_CONFIG", "3", Fatal),
        ("NEURON_RT_EXEC_TIMEOUT", "0", Fatal),
        ("NEURON_RT_EXEC_TIMEOUT", "86400", Unwise),
        ("NEURON_RT_LOG_LEVEL", "debug", Unwise),
        ("NEURON_RT_IO_RING_CACHE_SIZE", "1", Unwise),
        ("NJOULE_NEURON_STEP_TIMEOUT", "40s", Fatal),
        ("NEURON_RT_STOCHASTIC_ROUNDING_EN", "1", Unwise),
        ("NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS", "3", Unwise),
        ("NEURON_RT_ROOT_COMM_ID", "10.0.0.1", Fatal),
        ("NEURON_SCRATCHPAD_PAGE_SIZE", "100", Fatal),
        ("NEURON_PLATFORM_TARGET_OVERRIDE", "trn2", Unwise),
        ("NJOULE_SYSFS_ROOT", "/no/such/directory", Fatal),
    ] {
        assert_eq!(on_inf2(name, value), Some(gravity), "{name}={value}");
    }
}

#[test]
fn two_physical_cores_make_a_logical_one_where_the_chip_has_that() {
    let env = Env::from_pairs([("NEURON_LOGICAL_NC_CONFIG", "2")]);
    assert_eq!(judge(&env, 4, &[Chip::Trainium2])[0].problem, None);
}

#[test]
fn what_is_not_set_is_not_judged() {
    assert!(judge(&Env::from_pairs([("PATH", "/bin"), ("NEURON_RT_NUM_CORES", "")]), 4, &[]).is_empty());
}

proptest! {
    #[test]
    fn any_value_of_any_variable_is_judged(rule in 0..RULES.len(), value in "[0-9,:. -]{1,20}|\\PC{1,20}") {
        let judged = judge(&Env::from_pairs([(RULES[rule].0, value.clone())]), 4, &[Chip::Trainium1]);
        prop_assert!(judged.len() == usize::from(!value.trim().is_empty()));
    }
}
