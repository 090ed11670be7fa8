//! A library that is none of NVIDIA's, compiled here, opened and asked as if it were.

use std::path::PathBuf;
use std::process::Command;

use njoule_energy::nvml::Nvml;

use crate::machine::{Machine, window};

/// Two boards: one counts energy, the other (older) knows its power alone. Values come from a file.
const SOURCE: &str = r#"
#include <stdio.h>
#include <stdlib.h>
static unsigned long long value(int i) {
    unsigned long long v[2] = {0, 0};
    FILE *f = fopen(PATH, "r");
    if (f) { if (fscanf(f, "%llu %llu", &v[0], &v[1]) != 2) v[0] = v[1] = 0; fclose(f); }
    return v[i];
}
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)(size_t)(i + 1); return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *h, unsigned long long *mj) {
    if (h != (void *)1) return 3;
    *mj = value(0);
    return 0;
}
int nvmlDeviceGetPowerUsage(void *h, unsigned *mw) { *mw = (unsigned)value((int)(size_t)h - 1); return 0; }
"#;

/// The library of a source that reads `/values`.
fn compiled(m: &Machine, source: &str) -> PathBuf {
    m.put("/nvml.c", source);
    let library = m.path("/libnvidia-ml.so.1");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(format!("-DPATH=\"{}\"", m.path("/values").display()))
        .arg(m.path("/nvml.c"))
        .status()
        .expect("a C compiler, which njoule's build needs anyway");
    assert!(built.success());
    library
}

#[test]
fn boards_count_and_older_ones_are_integrated() {
    let m = Machine::new();
    m.put("/values", "5000 100000");
    let mut wanted = m.wanted();
    wanted.nvml = Some(compiled(&m, SOURCE));
    let mut meters = m.meters(&wanted);
    let start = meters.snapshot();
    m.hands.pass(4.0);
    m.put("/values", "905000 200000");
    let w = window(&start, &meters.snapshot());
    // 900 J counted; 100 to 200 W over four seconds.
    assert_eq!(w.meters[0].joules.unwrap().best(), 900.0);
    assert_eq!(w.meters[1].joules.unwrap().best(), 600.0);
    assert_eq!((w.total.joules.unwrap().best(), w.total.boundary.as_str()), (1500.0, "accelerator"));
    // The driver was loaded again: the counter falls.
    m.hands.pass(1.0);
    m.put("/values", "10 200000");
    let reset = window(&start, &meters.snapshot());
    assert!(reset.total.joules.is_none() && reset.total.reasons[0].contains("reset"), "{:?}", reset.total);
}

/// Three boards: one counts, one knows its power of a moment with a stamp, one fails altogether.
const BROKEN: &str = r#"
#include <stdio.h>
typedef struct { unsigned field, scope; long long stamp, latency; unsigned kind; int status; union { unsigned u; double d; } v; } Field;
static long long value(int i) {
    long long v[4] = {0, 0, 0, 0};
    FILE *f = fopen(PATH, "r");
    if (f) { if (fscanf(f, "%lld %lld %lld %lld", &v[0], &v[1], &v[2], &v[3]) != 4) v[0] = 0; fclose(f); }
    return v[i];
}
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = (unsigned)value(3); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)(size_t)(i + 1); return i == 2 ? 15 : 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *h, unsigned long long *mj) {
    if (h != (void *)1) return 3;
    *mj = (unsigned long long)value(0);
    return 0;
}
int nvmlDeviceGetFieldValues(void *h, int n, Field *f) {
    if (n != 1 || f->field != 186) return 2;
    f->kind = 1; f->status = h == (void *)2 ? 0 : 3; f->stamp = value(2); f->v.u = (unsigned)value(1);
    return 0;
}
int nvmlDeviceGetPowerUsage(void *h, unsigned *mw) { *mw = 1; return 0; }
"#;

#[test]
fn a_board_that_fails_makes_the_total_unknown_and_power_is_of_a_moment() {
    let m = Machine::new();
    let library = compiled(&m, BROKEN);
    let mut wanted = m.wanted();
    wanted.nvml = Some(library);
    m.put("/values", "5000 100000 1 2");
    let mut meters = m.meters(&wanted);
    let start = meters.snapshot();
    // The same sample again, then another: a trapezoid over both seconds, not one over each.
    m.hands.pass(1.0);
    m.put("/values", "6000 400000 1 2");
    meters.poll();
    m.hands.pass(1.0);
    m.put("/values", "7000 200000 2 2");
    let w = window(&start, &meters.snapshot());
    assert_eq!(w.meters[1].info.source, "nvml:NVML_FI_DEV_POWER_INSTANT");
    assert_eq!((w.meters[0].joules.unwrap().best(), w.meters[1].joules.unwrap().best()), (2.0, 300.0));
    assert_eq!(w.total.joules.unwrap().best(), 302.0);

    m.put("/values", "7000 200000 3 3");
    let mut meters = m.meters(&wanted);
    let start = meters.snapshot();
    m.hands.pass(1.0);
    m.put("/values", "9000 200000 4 3");
    let w = window(&start, &meters.snapshot());
    assert_eq!((w.meters.len(), w.meters[0].joules.unwrap().best()), (3, 2.0));
    assert!(w.total.joules.is_none() && w.total.reasons[0].contains("nvml-2: nvml: nvmlDeviceGetHandleByIndex_v2"));
}

#[test]
fn what_is_no_nvml_says_so() {
    let m = Machine::new();
    m.put("/libnvidia-ml.so.1", "no library");
    let error = Nvml::open_at(&m.path("/libnvidia-ml.so.1")).err().unwrap().to_string();
    assert!(error.starts_with("libnvidia-ml: "), "{error}");
    let mut wanted = m.wanted();
    wanted.nvml = Some(m.path("/nowhere.so"));
    let absent = m.meters(&wanted).snapshot().absent;
    assert!(absent.iter().any(|a| a.meter == "nvml" && a.reason.contains("nowhere.so: ")), "{absent:?}");
}
