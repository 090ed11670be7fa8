//! Which instruction set runs: detected once, as a table of function pointers.
//!
//! A [`Kernels`] value exists only where its instruction set is available, which is what makes calling through it
//! sound. `NJOULE_ISA` forces a set; tests run every one in [`Kernels::available`].

use std::sync::OnceLock;

use crate::acts::{self, Act, Glu};
use crate::attention::{self, AttendArgs, AttendFn, MAX_TILE};
use crate::gemm::{self, ActKind, TileArgs, TileFn};
use crate::packed::Stored;
use crate::route::{self, Routing};
use crate::rows::{self, NormArgs};
use crate::simd::Simd;
use crate::simd::scalar::Scalar;

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust.
    Scalar,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX-512 with VNNI.
    Avx512Vnni,
    /// AVX-512 with VNNI and BF16.
    Avx512Bf16,
    /// 64-bit Arm.
    Neon,
}

impl Isa {
    /// Every set, slowest first.
    pub const ALL: [Isa; 5] = [Isa::Scalar, Isa::Neon, Isa::Avx2, Isa::Avx512Vnni, Isa::Avx512Bf16];

    /// The name that `NJOULE_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Neon => "neon",
        }
    }

    /// The set of this name.
    pub fn parse(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name)
    }
}

/// `NJOULE_ISA` names no set, or one that this CPU lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("NJOULE_ISA={asked}: this CPU has {available}")]
pub struct IsaError {
    /// Its value.
    pub asked: String,
    /// The names that would do.
    pub available: String,
}

/// Every kernel of one instruction set.
#[derive(Debug)]
#[allow(clippy::type_complexity)] // the signatures stand once, beside the kernels' own
pub struct Kernels {
    /// The set.
    pub isa: Isa,
    /// Tokens of a tile at most.
    pub tile: usize,
    /// Whether bf16 pairs multiply in hardware.
    pub bf16: bool,
    pub(crate) tiles: [[TileFn; MAX_TILE]; Stored::ALL.len()],
    pub(crate) attend: [AttendFn; 4],
    pub(crate) pack_row: unsafe fn(ActKind, *const f32, usize, *mut u8, *mut u8, (usize, usize), bool),
    pub(crate) act: unsafe fn(Act, *const f32, *mut f32, usize),
    pub(crate) glu: unsafe fn(Glu, *const f32, *const f32, *mut f32, usize),
    pub(crate) add_norm: unsafe fn(&NormArgs, *const f32, Option<*const f32>, (usize, usize), *mut f32, *mut f32),
    pub(crate) head_norm: unsafe fn(&NormArgs, *const f32, usize, usize, *mut f32),
    pub(crate) rope_half: unsafe fn(*mut f32, usize, usize, *const f32, *const f32, usize),
    pub(crate) rope_neighbours: unsafe fn(*mut f32, usize, usize, *const f32, *const f32, usize),
    pub(crate) add: unsafe fn(*const f32, *const f32, *mut f32, usize),
    pub(crate) mul: unsafe fn(*const f32, *const f32, *mut f32, usize),
    pub(crate) scale: unsafe fn(*const f32, f32, *mut f32, usize),
    pub(crate) add_scaled: unsafe fn(*const f32, f32, *mut f32, usize),
    pub(crate) softcap: unsafe fn(*const f32, f32, *mut f32, usize),
    pub(crate) clamp: unsafe fn(*const f32, f32, *mut f32, usize),
    pub(crate) route: unsafe fn(&Routing, *const f32, usize, *mut f32),
}

impl Kernels {
    /// The best set of this CPU, or the one that `NJOULE_ISA` names.
    pub fn detect() -> Result<&'static Kernels, IsaError> {
        static CHOSEN: OnceLock<Result<&'static Kernels, IsaError>> = OnceLock::new();
        let choose = || match std::env::var("NJOULE_ISA") {
            Ok(name) if !name.is_empty() => Isa::parse(&name).and_then(Kernels::of).ok_or_else(|| IsaError {
                asked: name,
                available: Kernels::available().map(|k| k.isa.name()).collect::<Vec<_>>().join(", "),
            }),
            _ => Ok(Kernels::available().last().unwrap_or(&SCALAR)),
        };
        CHOSEN.get_or_init(choose).clone()
    }

    /// The kernels of `isa` where this CPU has it.
    pub fn of(isa: Isa) -> Option<&'static Kernels> {
        match isa {
            Isa::Scalar => Some(&SCALAR),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86_64::has_avx2().then_some(&x86_64::avx2::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => x86_64::has_vnni().then_some(&x86_64::vnni::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => x86_64::has_bf16().then_some(&x86_64::bf16::KERNELS),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Some(&neon::KERNELS),
            #[allow(unreachable_patterns)] // which arms are left depends on the target
            _ => None,
        }
    }

    /// Every set this CPU has, slowest first.
    pub fn available() -> impl Iterator<Item = &'static Kernels> {
        Isa::ALL.into_iter().filter_map(Kernels::of)
    }
}

/// The products of one instruction set: generic kernels made concrete under its target features.
macro_rules! products {
    ($simd:ty $(, $feature:literal)?) => {
        $(#[target_feature(enable = $feature)])?
        unsafe fn tile<const STORED: u8, const NT: usize>(a: &TileArgs) {
            // SAFETY: the caller's; the features are those of this function.
            unsafe { gemm::tile::<$simd, STORED, NT>(a) }
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn pack_row(
            kind: ActKind,
            x: *const f32,
            cols: usize,
            act: *mut u8,
            meta: *mut u8,
            token: (usize, usize),
            fine: bool,
        ) {
            // SAFETY: as above.
            unsafe { gemm::pack_row::<$simd>(kind, x, cols, act, meta, token, fine) }
        }

        const fn tiles<const STORED: u8>() -> [TileFn; MAX_TILE] {
            [
                tile::<STORED, 1>,
                tile::<STORED, 2>,
                tile::<STORED, 3>,
                tile::<STORED, 4>,
                tile::<STORED, { limit(5) }>,
                tile::<STORED, { limit(6) }>,
                tile::<STORED, { limit(7) }>,
                tile::<STORED, { limit(8) }>,
            ]
        }

        /// Sizes above the set's tile are never called; they share one instance.
        const fn limit(n: usize) -> usize {
            if n <= <$simd as Simd>::TILE { n } else { 1 }
        }

        const TILES: [[TileFn; MAX_TILE]; Stored::ALL.len()] =
            [tiles::<0>(), tiles::<1>(), tiles::<2>(), tiles::<3>(), tiles::<4>(), tiles::<5>()];
    };
}

/// All entry points of one instruction set.
macro_rules! entry_points {
    ($isa:expr, $simd:ty $(, $feature:literal)?) => {
        products!($simd $(, $feature)?);

        $(#[target_feature(enable = $feature)])?
        unsafe fn attend<const KV: u8>(a: &AttendArgs<'_>) {
            // SAFETY: as above.
            unsafe { attention::attend::<$simd, KV>(a) }
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn act(kind: Act, x: *const f32, out: *mut f32, len: usize) {
            // SAFETY: as above.
            unsafe { acts::act::<$simd>(kind, x, out, len) }
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn glu(kind: Glu, gate: *const f32, up: *const f32, out: *mut f32, len: usize) {
            // SAFETY: as above.
            unsafe { acts::glu::<$simd>(kind, gate, up, out, len) }
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn add_norm(
            norm: &NormArgs,
            x: *const f32,
            delta: Option<*const f32>,
            cols: (usize, usize),
            sum: *mut f32,
            out: *mut f32,
        ) {
            // SAFETY: as above.
            unsafe { rows::add_norm::<$simd>(norm, x, delta, cols, sum, out) }
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn head_norm(norm: &NormArgs, x: *const f32, head: usize, cols: usize, out: *mut f32) {
            // SAFETY: as above.
            unsafe { rows::head_norm::<$simd>(norm, x, head, cols, out) }
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn rope_half(x: *mut f32, head: usize, cols: usize, cos: *const f32, sin: *const f32, pairs: usize) {
            // SAFETY: as above.
            unsafe { rows::rope_half::<$simd>(x, head, cols, cos, sin, pairs) }
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn rope_neighbours(
            x: *mut f32,
            head: usize,
            cols: usize,
            cos: *const f32,
            sin: *const f32,
            pairs: usize,
        ) {
            // SAFETY: as above.
            unsafe { rows::rope_neighbours::<$simd>(x, head, cols, cos, sin, pairs) }
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn add(x: *const f32, y: *const f32, out: *mut f32, padded: usize) {
            // SAFETY: as above.
            unsafe { rows::add::<$simd>(x, y, out, padded) }
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn mul(x: *const f32, y: *const f32, out: *mut f32, padded: usize) {
            // SAFETY: as above.
            unsafe { rows::mul::<$simd>(x, y, out, padded) }
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn scale(x: *const f32, factor: f32, out: *mut f32, padded: usize) {
            // SAFETY: as above.
            unsafe { rows::scale::<$simd>(x, factor, out, padded) }
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn add_scaled(x: *const f32, factor: f32, out: *mut f32, padded: usize) {
            // SAFETY: as above.
            unsafe { rows::add_scaled::<$simd>(x, factor, out, padded) }
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn softcap(x: *const f32, cap: f32, out: *mut f32, padded: usize) {
            // SAFETY: as above.
            unsafe { rows::softcap::<$simd>(x, cap, out, padded) }
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn clamp(x: *const f32, bound: f32, out: *mut f32, padded: usize) {
            // SAFETY: as above.
            unsafe { rows::clamp::<$simd>(x, bound, out, padded) }
        }

        $(#[target_feature(enable = $feature)])?
        unsafe fn route(routing: &Routing, x: *const f32, experts: usize, out: *mut f32) {
            // SAFETY: as above.
            unsafe { route::route::<$simd>(routing, x, experts, out) }
        }

        pub(in crate::isa) const TABLE: Kernels = Kernels {
            isa: $isa,
            tile: <$simd as Simd>::TILE,
            bf16: <$simd as Simd>::BF16,
            tiles: TILES,
            attend: [attend::<0>, attend::<1>, attend::<2>, attend::<3>],
            pack_row,
            act,
            glu,
            add_norm,
            head_norm,
            rope_half,
            rope_neighbours,
            add,
            mul,
            scale,
            add_scaled,
            softcap,
            clamp,
            route,
        };

        pub(in crate::isa) static KERNELS: Kernels = TABLE;
    };
}

use scalar::KERNELS as SCALAR;

mod scalar {
    use super::*;
    entry_points!(Isa::Scalar, Scalar);
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::*;
    entry_points!(Isa::Neon, crate::simd::neon::Neon, "neon");
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    pub fn has_avx2() -> bool {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
    }

    pub fn has_vnni() -> bool {
        has_avx2()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
    }

    pub fn has_bf16() -> bool {
        has_vnni() && is_x86_feature_detected!("avx512bf16")
    }

    pub mod avx2 {
        use super::super::*;
        entry_points!(Isa::Avx2, crate::simd::x86_64::avx2::Avx2, "avx2,fma,f16c");
    }

    pub mod vnni {
        use super::super::*;
        entry_points!(
            Isa::Avx512Vnni,
            crate::simd::x86_64::avx512::Avx512<false>,
            "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
        );
    }

    pub mod bf16 {
        use super::super::*;
        use super::vnni;

        type Bf16 = crate::simd::x86_64::avx512::Avx512<true>;
        products!(Bf16, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16");

        /// Only products differ: the rest is built once.
        pub(in crate::isa) static KERNELS: Kernels =
            Kernels { isa: Isa::Avx512Bf16, bf16: true, tiles: TILES, pack_row, ..vnni::TABLE };
    }
}
