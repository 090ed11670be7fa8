//! Every vector operation of every set against the same thing said in plain Rust, and `exp` over its whole range.

use half::{bf16, f16};

use super::*;
use crate::fixture::{Noise, report};
use crate::isa::{Isa, Kernels};

/// The operations of one set on slices, compiled for it.
struct Vectors {
    isa: Isa,
    map: unsafe fn(Map, &[f32], &mut [f32]),
    widen: unsafe fn(bool, &[u16], &mut [f32]),
    narrow: unsafe fn(bool, &[f32], &mut [u16]),
    shapes: unsafe fn(&mut Vec<String>),
    dots: unsafe fn(&mut Noise, &mut Vec<String>),
}

#[derive(Clone, Copy)]
enum Map {
    Exp,
    Silu,
}

macro_rules! vectors {
    ($isa:expr, $simd:ty $(, $feature:literal)?) => {{
        $(#[target_feature(enable = $feature)])?
        unsafe fn map(map: Map, x: &[f32], out: &mut [f32]) {
            // SAFETY: the caller has the set; both slices hold whole vectors.
            unsafe { super::tests::map::<$simd>(map, x, out) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn widen(bf16: bool, x: &[u16], out: &mut [f32]) {
            // SAFETY: as above.
            unsafe { super::tests::widen::<$simd>(bf16, x, out) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn narrow(bf16: bool, x: &[f32], out: &mut [u16]) {
            // SAFETY: as above.
            unsafe { super::tests::narrow::<$simd>(bf16, x, out) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn shapes(failures: &mut Vec<String>) {
            // SAFETY: as above.
            unsafe { super::tests::shapes::<$simd>(failures) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn dots(noise: &mut Noise, failures: &mut Vec<String>) {
            // SAFETY: as above.
            unsafe {
                super::tests::dots::<$simd, 1>(noise, failures);
                super::tests::dots::<$simd, 3>(noise, failures);
                super::tests::dots::<$simd, { <$simd as Simd>::TILE }>(noise, failures);
            }
        }
        Vectors { isa: $isa, map, widen, narrow, shapes, dots }
    }};
}

/// Every set of this CPU.
fn available() -> Vec<Vectors> {
    let all = vec![
        vectors!(Isa::Scalar, scalar::Scalar),
        #[cfg(target_arch = "x86_64")]
        vectors!(Isa::Avx2, x86_64::avx2::Avx2, "avx2,fma,f16c"),
        #[cfg(target_arch = "x86_64")]
        vectors!(
            Isa::Avx512Vnni,
            x86_64::avx512::Avx512<false>,
            "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
        ),
        #[cfg(target_arch = "x86_64")]
        vectors!(
            Isa::Avx512Bf16,
            x86_64::avx512::Avx512<true>,
            "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16"
        ),
        #[cfg(target_arch = "aarch64")]
        vectors!(Isa::Neon, neon::Neon, "neon"),
    ];
    all.into_iter().filter(|v| Kernels::of(v.isa).is_some()).collect()
}

#[inline(always)]
unsafe fn map<S: Simd>(map: Map, x: &[f32], out: &mut [f32]) {
    for i in (0..x.len()).step_by(S::LANES) {
        // SAFETY: the caller has the set; both slices hold whole vectors.
        unsafe {
            let x = S::load(x.as_ptr().add(i));
            let y = match map {
                Map::Exp => exp::<S>(x),
                Map::Silu => silu::<S>(x),
            };
            S::store(out.as_mut_ptr().add(i), y);
        }
    }
}

#[inline(always)]
unsafe fn widen<S: Simd>(bf16: bool, x: &[u16], out: &mut [f32]) {
    for i in (0..x.len()).step_by(S::LANES) {
        // SAFETY: the caller has the set; both slices hold whole vectors.
        unsafe {
            let p = x.as_ptr().add(i);
            S::store(out.as_mut_ptr().add(i), if bf16 { S::load_bf16(p) } else { S::load_f16(p) });
        }
    }
}

#[inline(always)]
unsafe fn narrow<S: Simd>(bf16: bool, x: &[f32], out: &mut [u16]) {
    for i in (0..x.len()).step_by(S::LANES) {
        // SAFETY: the caller has the set; both slices hold whole vectors.
        unsafe {
            let (x, p) = (S::load(x.as_ptr().add(i)), out.as_mut_ptr().add(i));
            if bf16 { S::store_bf16(p, x) } else { S::store_f16(p, x) }
        }
    }
}

fn all(values: impl IntoIterator<Item = f32>) -> Vec<f32> {
    let mut values: Vec<f32> = values.into_iter().collect();
    values.resize(values.len().next_multiple_of(16), 0.0);
    values
}

fn mapped(v: &Vectors, map: Map, x: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len()];
    // SAFETY: `available` checked the set; the slices hold whole vectors.
    unsafe { (v.map)(map, x, &mut out) };
    out
}

#[test]
fn exp_is_right_to_three_ulp_over_its_whole_range() {
    // Every 997th number from -87.3 to 88, both sides of zero.
    let negative = (0..=87.3_f32.to_bits()).step_by(997).map(|b| -f32::from_bits(b));
    let positive = (0..=88.0_f32.to_bits()).step_by(997).map(f32::from_bits);
    let x = all(negative.chain(positive));
    for v in available() {
        let mut worst = (0.0, 0.0);
        for (x, y) in x.iter().zip(mapped(&v, Map::Exp, &x)) {
            let want = f64::from(*x).exp();
            // One unit in the last place of the result.
            let ulp = f64::from(f32::from_bits((want as f32).to_bits() + 1)) - f64::from(want as f32);
            let error = (f64::from(y) - want).abs() / ulp;
            worst = if error > worst.0 { (error, *x) } else { worst };
        }
        println!("{}: {:.3} ulp at {} of {} values", v.isa.name(), worst.0, worst.1, x.len());
        assert!(worst.0 <= 3.0, "{}: {} ulp at {}", v.isa.name(), worst.0, worst.1);
    }
}

#[test]
fn exp_is_one_at_zero_and_zero_far_below() {
    let x = all([0.0, -0.0, -88.1, -100.0, -104.0, -1e10, -3e38, f32::NEG_INFINITY, f32::NAN]);
    for v in available() {
        let y = mapped(&v, Map::Exp, &x);
        assert!(y[0].to_bits() == 1.0_f32.to_bits() && y[1] == 1.0, "{}: {} {}", v.isa.name(), y[0], y[1]);
        assert!(y[2..8].iter().all(|y| *y == 0.0), "{}: {:?}", v.isa.name(), &y[2..8]);
        // Below the smallest normal result, it is zero or at most that.
        let edge = all((0..1600).map(|i| -87.3 - i as f32 * 1e-3));
        assert!(mapped(&v, Map::Exp, &edge)[..1600].iter().all(|y| (0.0..=1.3e-38).contains(y)), "{}", v.isa.name());
    }
}

#[test]
fn silu_is_near_the_formula_and_never_nan_for_numbers() {
    let x = all((0..=3.0e38_f32.to_bits()).step_by(99_991).flat_map(|b| [f32::from_bits(b), -f32::from_bits(b)]));
    let infinite = all([f32::INFINITY, f32::MAX, f32::MIN]);
    for v in available() {
        let mut worst = 0.0_f64;
        for (x, y) in x.iter().zip(mapped(&v, Map::Silu, &x)) {
            let wide = f64::from(*x);
            let want = wide / (1.0 + (-wide).exp());
            assert!(y.is_finite(), "{}: silu({x}) = {y}", v.isa.name());
            // Past -88 the formula stops shrinking: |x| / 1.6e38 is what is left.
            if *x > -88.0 {
                worst = worst.max((f64::from(y) - want).abs() / want.abs().max(1e-37));
            } else {
                assert!(y <= 0.0 && f64::from(y) >= wide / 1.6e38, "{}: silu({x}) = {y}", v.isa.name());
            }
        }
        assert!(worst < 5e-7, "{}: {worst:.2e}", v.isa.name());
        let y = mapped(&v, Map::Silu, &infinite);
        assert!(y[0] == f32::INFINITY && y[1] == f32::MAX && y[2] <= 0.0 && y[2] > -3.0, "{}: {y:?}", v.isa.name());
    }
}

/// Numbers of every size: all signs and exponents, random and edge fractions, and random bits.
fn wide_values() -> Vec<f32> {
    let mut noise = Noise::new(11);
    let edges = [0, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0x17fff, 0x1_8000, 0x7f_ffff];
    let mut values = vec![];
    for high in 0..512_u32 {
        values.extend(edges.map(|e| f32::from_bits(high << 23 | e)));
        values.extend((0..64).map(|_| f32::from_bits(high << 23 | (noise.bits() as u32 & 0x7f_ffff))));
    }
    values.extend((0..200_000).map(|_| f32::from_bits(noise.bits() as u32)));
    all(values)
}

#[test]
fn halves_widen_and_round_as_the_half_crate_does() {
    let every: Vec<u16> = (0..=u16::MAX).collect();
    let values = wide_values();
    let (mut cases, mut failures) = (0, vec![]);
    for (v, is_bf16) in available().iter().flat_map(|v| [(v, false), (v, true)]) {
        let name = if is_bf16 { "bf16" } else { "f16" };
        let up = |x: u16| if is_bf16 { bf16::from_bits(x).to_f32() } else { f16::from_bits(x).to_f32() };
        let down = |x: f32| if is_bf16 { bf16::from_f32(x).to_bits() } else { f16::from_f32(x).to_bits() };
        let nan = |x: u16| up(x).is_nan();
        let mut wide = vec![0.0; every.len()];
        let mut back = vec![0; every.len()];
        let mut narrow = vec![0; values.len()];
        // SAFETY: `available` checked the set; the slices hold whole vectors.
        unsafe {
            (v.widen)(is_bf16, &every, &mut wide);
            (v.narrow)(is_bf16, &wide, &mut back);
            (v.narrow)(is_bf16, &values, &mut narrow);
        }
        cases += 2 * every.len() + values.len();
        for (x, (wide, back)) in every.iter().zip(wide.iter().zip(&back)) {
            let same =
                if nan(*x) { wide.is_nan() && nan(*back) } else { wide.to_bits() == up(*x).to_bits() && back == x };
            if !same {
                failures.push(format!("{} {name}: {x:#06x} is {wide}, then {back:#06x}", v.isa.name()));
            }
        }
        for (x, got) in values.iter().zip(&narrow) {
            let want = down(*x);
            if if x.is_nan() { !nan(*got) } else { *got != want } {
                failures.push(format!("{} {name}: {x:e} is {got:#06x}, not {want:#06x}", v.isa.name()));
            }
        }
    }
    println!("{cases} cases");
    report(cases, &failures);
}

#[test]
fn loads_stores_masks_and_reductions_do_what_they_say() {
    for v in available() {
        let mut failures = vec![];
        // SAFETY: `available` checked the set.
        unsafe { (v.shapes)(&mut failures) };
        assert!(failures.is_empty(), "{}: {failures:?}", v.isa.name());
    }
}

#[inline(always)]
unsafe fn shapes<S: Simd>(failures: &mut Vec<String>) {
    let n = S::LANES;
    let mut check = |what: &str, got: &[f32], want: &[f32]| {
        if got.iter().zip(want).any(|(a, b)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan())) {
            failures.push(format!("{what}: {got:?}, not {want:?}"));
        }
    };
    let mut noise = Noise::new(3);
    let x: Vec<f32> = noise.values(16, 100.0);
    let y: Vec<f32> = noise.values(16, 100.0);
    // SAFETY: the caller has the set; arrays hold sixteen elements or more, vectors at most sixteen.
    unsafe {
        let (vx, vy) = (S::load(x.as_ptr()), S::load(y.as_ptr()));
        let to_array = |v: S::F| {
            let mut out = [f32::NAN; 16];
            S::store(out.as_mut_ptr(), v);
            out
        };
        let lanes =
            |f: &dyn Fn(usize) -> f32| -> Vec<f32> { (0..16).map(|i| if i < n { f(i) } else { f32::NAN }).collect() };
        for k in 0..=n {
            check("load_n", &to_array(S::load_n(x.as_ptr(), k)), &lanes(&|i| if i < k { x[i] } else { 0.0 }));
            let mut out = [f32::NAN; 16];
            S::store_n(out.as_mut_ptr(), vx, k);
            check("store_n", &out, &lanes(&|i| if i < k { x[i] } else { f32::NAN }));
        }
        check("add", &to_array(S::add(vx, vy)), &lanes(&|i| x[i] + y[i]));
        check("sub", &to_array(S::sub(vx, vy)), &lanes(&|i| x[i] - y[i]));
        check("mul", &to_array(S::mul(vx, vy)), &lanes(&|i| x[i] * y[i]));
        check("div", &to_array(S::div(vx, vy)), &lanes(&|i| x[i] / y[i]));
        check("max", &to_array(S::max(vx, vy)), &lanes(&|i| x[i].max(y[i])));
        check("min", &to_array(S::min(vx, vy)), &lanes(&|i| x[i].min(y[i])));
        check("zero", &to_array(S::zero()), &lanes(&|_| 0.0));
        check("splat", &to_array(S::splat(1.5)), &lanes(&|_| 1.5));
        let fused = to_array(S::fma(vx, vy, vx));
        let near = (0..n).all(|i| (fused[i] - (x[i] * y[i] + x[i])).abs() <= 1e-6 * (x[i] * y[i]).abs() + 1e-4);
        check("fma", &[f32::from(u8::from(near))], &[1.0]);
        let mut sums = x[..n].to_vec();
        while sums.len() > 1 {
            let (a, b) = sums.split_at(sums.len() / 2);
            sums = a.iter().zip(b).map(|(a, b)| a + b).collect();
        }
        check("sum", &[S::sum(vx)], &sums);
        for at in 0..n {
            let mut peak = x.clone();
            peak[at] = 1000.0;
            check("hmax", &[S::hmax(S::load(peak.as_ptr()))], &[1000.0]);
            peak[at] = f32::NAN;
            let largest = f32::from_bits(S::ihmax(S::abs_bits(S::load(peak.as_ptr()))) as u32);
            check("ihmax of abs_bits", &[largest], &[f32::NAN]);
            peak[at] = -1000.0;
            let largest = f32::from_bits(S::ihmax(S::imax(S::abs_bits(S::load(peak.as_ptr())), S::isplat(0))) as u32);
            check("ihmax of abs_bits", &[largest], &[1000.0]);
        }
        let nan = S::splat(f32::NAN);
        for (at, from, to) in
            [(0, 0, 16), (0, 3, 5), (16, 3, 5), (16, 3, 18), (16, 20, 99), (16, 0, 16), (100, 0, i32::MAX)]
        {
            let inside = |i: usize| (from..to).contains(&(at + i as i32));
            let outside = f32::NEG_INFINITY;
            let got = to_array(S::mask_range(vx, at, from, to));
            check("mask_range", &got, &lanes(&|i| if inside(i) { x[i] } else { outside }));
            let got = to_array(S::mask_range(nan, at, from, to));
            check("mask_range of NaN", &got, &lanes(&|i| if inside(i) { f32::NAN } else { outside }));
        }
        let ties =
            [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -127.0, 0.49, -0.51, 7.0, 8.0, 9.0, 100.4, -128.0, 127.0_f32];
        let rounded: [f32; 16] = ties.map(f32::round_ties_even);
        for half in (0..16).step_by(n) {
            let q = S::round(S::load(ties[half..].as_ptr()));
            check(
                "round",
                &to_array(S::to_f32(q))[..n],
                &rounded[half..half + n].iter().map(|x| x + 0.0).collect::<Vec<_>>(),
            );
            let total: f32 = rounded[half..half + n].iter().sum();
            check("isum", &[S::isum(S::iadd(q, S::isplat(1))) as f32], &[total + n as f32]);
            let mut bytes = [77_i8; 17];
            S::store_i8(bytes.as_mut_ptr(), q);
            check(
                "store_i8",
                &bytes.map(f32::from)[..n],
                &rounded[half..half + n].iter().map(|x| x + 0.0).collect::<Vec<_>>(),
            );
            check("store_i8 past its lanes", &bytes.map(f32::from)[n..], &[77.0; 16][..17 - n]);
            check("load_i8", &to_array(S::load_i8(bytes.as_ptr())), &lanes(&|i| rounded[half + i] + 0.0));
        }
        for e in [-200, -128, -127, -126, -1, 0, 1, 126, 127] {
            let got = to_array(S::scale_by_pow2(S::splat(1.25), S::isplat(e)));
            let want = if e <= -127 { 0.0 } else { (1.25 * 2.0_f64.powi(e)) as f32 };
            check("scale_by_pow2", &got, &lanes(&|_| want));
        }
        // Pairs: even elements in the first vector, odd in the second; small integers make every product exact.
        let pairs: Vec<u16> = (0..32).map(|i| bf16::from_f32(i as f32 - 9.0).to_bits()).collect();
        let (even, odd) = S::load_bf16_pairs(pairs.as_ptr());
        check("even", &to_array(even), &lanes(&|i| (2 * i) as f32 - 9.0));
        check("odd", &to_array(odd), &lanes(&|i| (2 * i + 1) as f32 - 9.0));
        let a = [3.0, -5.0].map(|x| bf16::from_f32(x).to_bits());
        let got = to_array(S::dot2_bf16(S::splat(2.0), pairs.as_ptr(), a.as_ptr()));
        check("dot2_bf16", &got, &lanes(&|i| 2.0 + ((2 * i) as f32 - 9.0) * 3.0 - ((2 * i + 1) as f32 - 9.0) * 5.0));
    }
}

#[test]
fn dot_products_of_codes_are_exact_at_their_extremes() {
    for v in available() {
        let mut failures = vec![];
        // SAFETY: `available` checked the set.
        unsafe { (v.dots)(&mut Noise::new(5), &mut failures) };
        assert!(failures.is_empty(), "{}: {failures:?}", v.isa.name());
    }
}

#[inline(always)]
unsafe fn dots<S: Simd, const NT: usize>(noise: &mut Noise, failures: &mut Vec<String>) {
    for attempt in 0..30 {
        // Codes at their ends in every combination of signs first, random ones after.
        let mut draw = |low: i32, high: i32| match attempt {
            0 => high,
            1 => low,
            2..=5 => [low, high][noise.below(2)],
            _ => low + noise.below((high - low + 1) as usize) as i32,
        };
        let w8: Vec<Vec<i32>> = (0..16).map(|_| (0..32).map(|_| draw(-128, 127)).collect()).collect();
        let w4: Vec<Vec<i32>> = (0..16).map(|_| (0..32).map(|_| draw(0, 15)).collect()).collect();
        let a: Vec<Vec<i32>> = (0..NT).map(|_| (0..32).map(|_| draw(-127, 127)).collect()).collect();
        let (mut bytes8, mut bytes4, mut codes) = (vec![0_u8; 512], vec![0_u8; 256], vec![0_i8; 32 * NT]);
        for (r, k) in (0..16).flat_map(|r| (0..32).map(move |k| (r, k))) {
            bytes8[k / 4 * 64 + r * 4 + k % 4] = (w8[r][k] + 128) as u8;
            bytes4[k / 4 % 4 * 64 + r * 4 + k % 4] |= (w4[r][k] as u8) << (k / 16 * 4);
        }
        for (t, k) in (0..NT).flat_map(|t| (0..32).map(move |k| (t, k))) {
            codes[(k / 4 * NT + t) * 4 + k % 4] = a[t][k] as i8;
        }
        let sums: Vec<i32> = a.iter().map(|a| a.iter().sum()).collect();
        let (init4, init8): (Vec<i32>, Vec<i32>) = sums.iter().map(|s| (-8 * s, -128 * s)).unzip();
        let dot = |w: &[i32], a: &[i32]| w.iter().zip(a).map(|(w, a)| w * a).sum::<i32>();
        for part in (0..16).step_by(S::LANES) {
            // SAFETY: the caller has the set; the panels, codes and starts are whole groups.
            let (got4, got8) = unsafe {
                (
                    S::dot_i4::<NT>(bytes4.as_ptr().add(part * 4), codes.as_ptr(), init4.as_ptr()),
                    S::dot_i8::<NT>(bytes8.as_ptr().add(part * 4), codes.as_ptr(), init8.as_ptr()),
                )
            };
            for (t, (got4, got8)) in got4.into_iter().zip(got8).enumerate() {
                let (mut out4, mut out8) = ([0.0_f32; 16], [0.0_f32; 16]);
                // SAFETY: as above; sums stay below 2^24, so that f32 holds them exactly.
                unsafe {
                    S::store(out4.as_mut_ptr(), S::to_f32(got4));
                    S::store(out8.as_mut_ptr(), S::to_f32(got8));
                }
                for i in 0..S::LANES {
                    let want4 = dot(&w4[part + i], &a[t]) - 8 * sums[t];
                    let want8 = dot(&w8[part + i], &a[t]);
                    if out4[i] != want4 as f32 || out8[i] != want8 as f32 {
                        failures.push(format!(
                            "tokens {NT} row {}: {} {want4}, {} {want8}",
                            part + i,
                            out4[i],
                            out8[i]
                        ));
                    }
                }
            }
        }
    }
}
