//! `quantization_config` of a `config.json`: how a checkpoint's matrices are stored where they are not plain tensors.
//!
//! Only what says how to read the stored weights is kept. A key that would change a weight's value and is not
//! understood is an error that names it. How the file would have *activations* quantised is not followed (a backend
//! quantises them its own way, or not at all), and a note says so. Which matrices are quantised is not read from the
//! config: the tensors tell. Sources: `quantization_config.py` of transformers 4.57.6, AutoGPTQ 0.7.1, GPTQModel 7.7,
//! AutoAWQ 0.2.9, compressed-tensors 0.20.

mod compressed;
#[cfg(test)]
mod tests;

use serde_json::Value;

use super::ConfigError;
use super::keys::Keys;
use super::keys::refuse_unknown;

/// How the quantised matrices of a checkpoint are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// Tensors and formula.
    pub method: Method,
    /// What the config asks for and this program does otherwise, in words.
    pub notes: Vec<String>,
}

/// A published form of quantised matrices `[out, in]`: which tensors, and how they make values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `qweight`, `qzeros`, `scales`, `g_idx`: `scale * (code - zero)` (Frantar et al. 2022, arXiv:2210.17323).
    Gptq {
        /// 4 or 8.
        bits: u32,
        /// Columns that share a scale.
        group: Group,
        /// The zero points are stored less one (`checkpoint_format` gptq, not gptq_v2).
        zeros_less_one: bool,
    },
    /// `qweight`, `qzeros`, `scales` in the GEMM order: 4 bits, `scale * (code - zero)` (Lin et al. 2023,
    /// arXiv:2306.00978).
    Awq {
        /// Columns that share a scale.
        group: Group,
    },
    /// compressed-tensors `pack-quantized`: `weight_packed`, `weight_scale`, `weight_zero_point`, `weight_shape`.
    Packed {
        /// 4 or 8.
        bits: u32,
        /// What shares a scale.
        scale: ScaleOf,
        /// No zero points.
        symmetric: bool,
        /// Columns have their group in `weight_g_idx`.
        reordered: bool,
    },
    /// compressed-tensors `int-quantized`: `weight` of 8-bit integers, `weight_scale`, `weight_zero_point`.
    Int8 {
        /// What shares a scale.
        scale: ScaleOf,
        /// No zero points.
        symmetric: bool,
    },
    /// `weight` of FP8 E4M3 and `weight_scale` or `weight_scale_inv`, which is multiplied with in spite of its name.
    Fp8 {
        /// What shares a scale.
        scale: ScaleOf,
        /// compressed-tensors rather than `fp8`.
        compressed: bool,
    },
    /// `<name>_blocks` and `<name>_scales`: FP4 E2M1 in blocks of 32 with a power of two (OCP Microscaling 1.0).
    Mxfp4,
}

impl Method {
    /// Every form, in words.
    pub const FORMS: [&str; 6] =
        ["GPTQ", "AWQ", "compressed-tensors pack-quantized", "compressed-tensors int-quantized", "FP8 E4M3", "MXFP4"];

    /// The form, in words.
    pub fn form(self) -> &'static str {
        let place = match self {
            Method::Gptq { .. } => 0,
            Method::Awq { .. } => 1,
            Method::Packed { .. } => 2,
            Method::Int8 { .. } => 3,
            Method::Fp8 { .. } => 4,
            Method::Mxfp4 => 5,
        };
        Self::FORMS[place]
    }
}

/// Columns of a row that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// All.
    Row,
    /// This many, positive.
    Of(usize),
}

/// Values that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleOf {
    /// The whole matrix.
    Tensor,
    /// Columns of a row.
    Row(Group),
    /// A block of rows and columns, both positive.
    Block(usize, usize),
}

impl Quantization {
    /// Reads the `quantization_config` (or `compression_config`) of a `config.json`; `None` where it has none.
    pub fn from_hf_json(json: &Value) -> Result<Option<Quantization>, ConfigError> {
        let found = ["quantization_config", "compression_config"].into_iter().find_map(|key| {
            let value = json.get(key)?;
            let empty = value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty);
            (!empty).then_some((key, value))
        });
        let Some((key, value)) = found else { return Ok(None) };
        let keys = match value.as_object() {
            Some(map) => Keys::new(map, PATH, &[]),
            None => {
                let (expected, value) = ("an object", super::keys::short(value));
                return Err(ConfigError::Type { key: key.to_owned(), expected, value });
            }
        };
        let method = keys.string("quant_method")?.or((key == "compression_config").then_some(COMPRESSED));
        match method.ok_or_else(|| ConfigError::Missing { key: keys.name("quant_method") })? {
            "gptq" => gptq(&keys).map(Some),
            "awq" => awq(&keys).map(Some),
            COMPRESSED => compressed::parse(&keys),
            "fp8" => fp8(&keys).map(Some),
            "mxfp4" => mxfp4(&keys).map(Some),
            other => Err(refused(&keys, "quant_method", other, "gptq, awq, compressed-tensors, fp8, mxfp4")),
        }
    }

    /// The method's name, as files have it.
    pub fn name(&self) -> &'static str {
        match self.method {
            Method::Gptq { .. } => "gptq",
            Method::Awq { .. } => "awq",
            Method::Packed { .. } | Method::Int8 { .. } | Method::Fp8 { compressed: true, .. } => COMPRESSED,
            Method::Fp8 { compressed: false, .. } => "fp8",
            Method::Mxfp4 => "mxfp4",
        }
    }

    fn plain(method: Method) -> Quantization {
        Quantization { method, notes: vec![] }
    }
}

fn gptq(keys: &Keys<'_>) -> Result<Quantization, ConfigError> {
    refuse_unknown(keys.map(), PATH, &[GPTQ, GPTQ_HARMLESS, NAMES_OF_MODULES])?;
    let mut zeros_less_one = None;
    for key in ["checkpoint_format", "format"] {
        let less_one = match keys.string(key)? {
            None => continue,
            Some("gptq") => true,
            Some("gptq_v2") => false,
            Some(other) => return Err(refused(keys, key, other, "gptq, gptq_v2")),
        };
        zeros_less_one.get_or_insert(less_one);
    }
    if let Some(other) = keys.string("method")?.filter(|m| *m != "gptq") {
        return Err(refused(keys, "method", other, "gptq"));
    }
    if let Some(other) = keys.string("pack_dtype")?.filter(|t| *t != "int32") {
        return Err(refused(keys, "pack_dtype", other, "int32"));
    }
    // Whether columns are reordered (`desc_act`) and zero points are all the middle (`sym`), g_idx and qzeros tell.
    keys.bool("desc_act")?;
    keys.bool("sym")?;
    let (bits, group) = (bits(keys, "bits", &[4, 8])?, group(keys, "group_size")?);
    Ok(Quantization::plain(Method::Gptq { bits, group, zeros_less_one: zeros_less_one.unwrap_or(true) }))
}

fn awq(keys: &Keys<'_>) -> Result<Quantization, ConfigError> {
    refuse_unknown(keys.map(), PATH, &[AWQ, AWQ_HARMLESS, NAMES_OF_MODULES])?;
    bits(keys, if keys.get("w_bit").is_some() { "w_bit" } else { "bits" }, &[4])?;
    let version = keys.string("version")?.unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return Err(refused(keys, "version", version, "gemm"));
    }
    if keys.bool("zero_point")? == Some(false) {
        return Err(refused(keys, "zero_point", "false", "true"));
    }
    let group = group(keys, if keys.get("q_group_size").is_some() { "q_group_size" } else { "group_size" })?;
    Ok(Quantization::plain(Method::Awq { group }))
}

fn fp8(keys: &Keys<'_>) -> Result<Quantization, ConfigError> {
    refuse_unknown(keys.map(), PATH, &[FP8, NAMES_OF_MODULES])?;
    if let Some(other) = keys.string("fmt")?.filter(|f| *f != "e4m3") {
        return Err(refused(keys, "fmt", other, "e4m3"));
    }
    let scale = match keys.get("weight_block_size") {
        None => ScaleOf::Tensor,
        Some(sizes) => block(keys, "weight_block_size", sizes)?,
    };
    let scheme = keys.string("activation_scheme")?.unwrap_or("dynamic");
    let notes = vec![format!("activations are not quantised to fp8 ({scheme}) as the file asks: {ACTIVATIONS}")];
    Ok(Quantization { method: Method::Fp8 { scale, compressed: false }, notes })
}

fn mxfp4(keys: &Keys<'_>) -> Result<Quantization, ConfigError> {
    refuse_unknown(keys.map(), PATH, &[&["quant_method", "dequantize"], NAMES_OF_MODULES])?;
    Ok(Quantization::plain(Method::Mxfp4))
}

/// `[rows, columns]`.
fn block(keys: &Keys<'_>, key: &str, value: &Value) -> Result<ScaleOf, ConfigError> {
    let size = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    match value.as_array().map(Vec::as_slice) {
        Some([rows, cols]) => size(rows).zip(size(cols)).map(|(rows, cols)| ScaleOf::Block(rows, cols)),
        _ => None,
    }
    .ok_or_else(|| keys.type_error(key, "two positive whole numbers"))
}

fn bits(keys: &Keys<'_>, key: &str, supported: &[u32]) -> Result<u32, ConfigError> {
    let found = keys.size(key)?.ok_or_else(|| ConfigError::Missing { key: keys.name(key) })?;
    let bits = u32::try_from(found).ok().filter(|b| supported.contains(b));
    let list = || supported.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    bits.ok_or_else(|| refused(keys, key, &found.to_string(), &list()))
}

/// Columns of a group; -1 is the whole row.
fn group(keys: &Keys<'_>, key: &str) -> Result<Group, ConfigError> {
    let value = keys.get(key).ok_or_else(|| ConfigError::Missing { key: keys.name(key) })?;
    match (value.as_i64(), value.as_u64().and_then(|n| usize::try_from(n).ok())) {
        (Some(-1), _) => Ok(Group::Row),
        (_, Some(n)) if n > 0 => Ok(Group::Of(n)),
        _ => Err(keys.type_error(key, "a positive whole number, or -1")),
    }
}

fn refused(keys: &Keys<'_>, key: &str, value: &str, supported: &str) -> ConfigError {
    // Bounded, as every value in an error.
    let value: String = value.chars().take(80).collect();
    ConfigError::value(keys.name(key), value, format!("is not supported, supported are {supported}"))
}

const PATH: &str = "quantization_config.";
const COMPRESSED: &str = "compressed-tensors";
const ACTIVATIONS: &str = "the backend stores and multiplies them its own way";

const GPTQ: &[&str] =
    &["bits", "checkpoint_format", "desc_act", "format", "group_size", "method", "pack_dtype", "quant_method", "sym"];

/// How the codes were found, and which kernel of another program is to run them.
const GPTQ_HARMLESS: &[&str] = &[
    "act_group_aware",
    "backend",
    "batch_size",
    "cache_block_outputs",
    "cache_examples_on_gpu",
    "damp_auto_increment",
    "damp_percent",
    "dataset",
    "disable_exllama",
    "exllama_config",
    "foem",
    "gptaq",
    "lm_head",
    "max_input_length",
    "meta",
    "model_file_base_name",
    "model_name_or_path",
    "model_seqlen",
    "module_name_preceding_first_block",
    "mse",
    "pad_token_id",
    "static_groups",
    "tokenizer",
    "true_sequential",
    "use_cuda_fp16",
    "use_exllama",
];

const AWQ: &[&str] = &["bits", "group_size", "q_group_size", "quant_method", "version", "w_bit", "zero_point"];
const AWQ_HARMLESS: &[&str] = &["backend", "do_fuse", "exllama_config", "fuse_max_seq_len", "modules_to_fuse"];

/// `scale_fmt` is about the scales of activations; those of weights are stored.
const FP8: &[&str] = &["activation_scheme", "fmt", "quant_method", "scale_fmt", "weight_block_size"];

/// Which modules are quantised: read from the tensors instead.
const NAMES_OF_MODULES: &[&str] =
    &["block_name_to_quantize", "ignore", "ignored_layers", "modules_in_block_to_quantize", "modules_to_not_convert"];
