//! Every status says what it means and what to do; unknown ones print as numbers.

use std::collections::BTreeSet;

use njoule_neuron_sys::{Action, Status};

/// AWS's header and troubleshooting guide.
const DOCUMENTED: [(u32, &str); 29] = [
    (0, "NRT_SUCCESS"),
    (1, "NRT_FAILURE"),
    (2, "NRT_INVALID"),
    (3, "NRT_INVALID_HANDLE"),
    (4, "NRT_RESOURCE"),
    (5, "NRT_TIMEOUT"),
    (6, "NRT_HW_ERROR"),
    (7, "NRT_QUEUE_FULL"),
    (9, "NRT_LOAD_NOT_ENOUGH_NC"),
    (10, "NRT_UNSUPPORTED_NEFF_VERSION"),
    (11, "NRT_FAIL_HOST_MEM_ALLOC"),
    (13, "NRT_UNINITIALIZED"),
    (14, "NRT_CLOSED"),
    (15, "NRT_QUEUE_EMPTY"),
    (101, "NRT_EXEC_UNIT_UNRECOVERABLE"),
    (1002, "NRT_EXEC_BAD_INPUT"),
    (1003, "NRT_EXEC_COMPLETED_WITH_NUM_ERR"),
    (1004, "NRT_EXEC_COMPLETED_WITH_ERR"),
    (1005, "NRT_EXEC_NC_BUSY"),
    (1006, "NRT_EXEC_OOB"),
    (1100, "NRT_COLL_PENDING"),
    (1200, "NRT_EXEC_HW_ERR_COLLECTIVES"),
    (1201, "NRT_EXEC_HW_ERR_HBM_UE"),
    (1202, "NRT_EXEC_HW_ERR_NC_UE"),
    (1203, "NRT_EXEC_HW_ERR_DMA_ABORT"),
    (1204, "NRT_EXEC_SW_NQ_OVERFLOW"),
    (1205, "NRT_EXEC_HW_ERR_REPAIRABLE_HBM_UE"),
    (1206, "NRT_NETWORK_PROXY_FAILURE"),
    (8, ""),
];

#[test]
fn every_documented_status_has_its_name_meaning_cause_and_advice() {
    for (code, name) in DOCUMENTED {
        let status = Status(code);
        assert_eq!(status.name().unwrap_or(""), name, "{code}");
        for text in [status.meaning(), status.cause(), status.advice()] {
            assert!(!text.is_empty() && !text.ends_with('.') && !text.contains("  "), "{code}: {text:?}");
        }
        assert!(status.to_string().contains(&code.to_string()), "{status}");
    }
    let known: BTreeSet<_> = Status::known().map(|s| s.0).collect();
    assert_eq!(known.len(), Status::known().count(), "a code stands twice");
    assert_eq!(known, DOCUMENTED.iter().filter(|(_, name)| !name.is_empty()).map(|(code, _)| *code).collect());
}

#[test]
fn a_known_status_prints_as_one_sentence() {
    assert_eq!(
        Status(4).to_string(),
        "NRT_RESOURCE (4): out of memory or of another resource, from more weights, cache or loaded models than the \
         device or the host holds; use a smaller batch, fewer buckets or more cores; the log has a table of device memory"
    );
}

#[test]
fn an_unknown_status_prints_as_its_number() {
    for code in [8, 12, 999, 1007, 1207, u32::MAX] {
        let status = Status(code);
        assert_eq!((status.name(), status.action()), (None, Action::Unknown));
        assert!(status.to_string().starts_with(&format!("status {code}: ")), "{status}");
        assert_eq!(status.ok(), Err(status), "it is no success");
    }
}

#[test]
fn the_statuses_after_which_the_device_is_unknown_end_the_process() {
    let ending: Vec<u32> = (0..2000).filter(|&code| Status(code).ends_process()).collect();
    assert_eq!(ending, [5, 6, 101, 1004, 1200, 1201, 1202, 1203, 1204, 1205, 1206]);
    for code in ending {
        let action = Status(code).action();
        assert!(matches!(action, Action::Restart | Action::Driver | Action::Replace), "{code}: {action:?}");
    }
    assert_eq!(Status::SUCCESS.ok(), Ok(()));
    assert_eq!(Status::QUEUE_FULL.action(), Action::Retry);
}
