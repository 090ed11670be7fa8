//! Flags that say how tokens are picked and when an answer ends.
//!
//! What is not given comes from the model's generation_config.json where that asks for sampling, with the defaults of
//! transformers; else the most likely token is taken. `--temperature 0` is always greedy.

use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use njoule_models::checkpoint::GenerationDefaults;
use njoule_runtime::request::TokenText;
use njoule_runtime::{Request, SamplingParams};

use crate::args::UsageError;

/// How answers are generated, as typed.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 takes the most likely token [default: the model's generation_config.json, else 0]
    #[arg(long, visible_alias = "temp", value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Keep this many of the most likely tokens; 0 keeps all
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Keep the fewest tokens that have this probability together
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Keep tokens with at least this share of the most likely one's probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Make tokens of prompt and answer less likely by this factor
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Subtracted from the logit of every token of the answer
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Subtracted from a token's logit once per occurrence in the answer
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Added to a token's logit, as ID=VALUE; may be repeated
    #[arg(long, value_name = "ID=VALUE", allow_hyphen_values = true)]
    logit_bias: Vec<Bias>,
    /// Makes sampling repeatable
    #[arg(long)]
    seed: Option<u64>,
    /// End the answer before this text; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// End the answer at this token; may be repeated
    #[arg(long, value_name = "ID")]
    stop_token_id: Vec<u32>,
    /// Nothing ends the answer before this many tokens
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    min_tokens: usize,
    /// Take end-of-sequence tokens for ordinary ones
    #[arg(long)]
    ignore_eos: bool,
}

/// One `--logit-bias`.
#[derive(Clone, Copy, Debug)]
struct Bias(u32, f32);

impl FromStr for Bias {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (id, value) = text.split_once('=').ok_or("expected ID=VALUE")?;
        let id = id.trim().parse().map_err(|_| "the token id before `=` is no number")?;
        let value = value.trim().parse().map_err(|_| "the value after `=` is no number")?;
        Ok(Bias(id, value))
    }
}

impl SamplingArgs {
    /// The parameters, checked for a vocabulary of `vocab` tokens.
    pub fn params(&self, defaults: &GenerationDefaults, vocab: usize) -> Result<SamplingParams, UsageError> {
        let sampled = defaults.do_sample == Some(true) && self.temperature != Some(0.0);
        let model = |value: Option<f32>, otherwise: f32| if sampled { value.unwrap_or(otherwise) } else { otherwise };
        let off = SamplingParams::default();
        // Somebody who narrows the choice wants to choose.
        let narrowed = self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        let temperature = if sampled || narrowed { model(defaults.temperature, 1.0) } else { 0.0 };
        let top_k = match defaults.top_k {
            _ if !sampled => off.top_k,
            None => TRANSFORMERS_TOP_K,
            Some(k) => usize::try_from(k).unwrap_or(usize::MAX),
        };
        let params = SamplingParams {
            temperature: self.temperature.unwrap_or(temperature),
            top_k: self.top_k.unwrap_or(top_k),
            top_p: self.top_p.unwrap_or_else(|| model(defaults.top_p, off.top_p)),
            min_p: self.min_p.unwrap_or(off.min_p),
            repetition_penalty: self
                .repetition_penalty
                .unwrap_or_else(|| model(defaults.repetition_penalty, off.repetition_penalty)),
            presence_penalty: self.presence_penalty.unwrap_or(off.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(off.frequency_penalty),
            logit_bias: self.logit_bias.iter().map(|b| (b.0, b.1)).collect(),
            seed: self.seed,
        };
        params.validate(vocab).map_err(|e| UsageError(e.to_string()))?;
        Ok(params)
    }

    /// Whether a tokenizer is needed to tell where an answer ends.
    pub fn needs_text(&self) -> bool {
        !self.stop.is_empty()
    }

    /// A request for an answer of at most `max_new` tokens that ends at `eos` or where the flags say.
    pub fn request(
        &self,
        prompt: Vec<u32>,
        max_new: usize,
        params: &SamplingParams,
        eos: &[u32],
        text: Option<Arc<dyn TokenText>>,
    ) -> Request {
        Request {
            sampling: params.clone(),
            eos_ids: eos.to_vec(),
            ignore_eos: self.ignore_eos,
            stop_token_ids: self.stop_token_id.clone(),
            stop: self.stop.clone(),
            min_tokens: self.min_tokens,
            text,
            ..Request::new(prompt, max_new)
        }
    }
}

/// `top_k` of transformers' GenerationConfig where a model that samples does not say.
const TRANSFORMERS_TOP_K: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_samples_gives_the_defaults_and_flags_override_them() {
        let defaults = GenerationDefaults {
            do_sample: Some(true),
            temperature: Some(0.6),
            top_p: Some(0.9),
            repetition_penalty: Some(1.1),
            ..GenerationDefaults::default()
        };
        let params = SamplingArgs::default().params(&defaults, 100).unwrap();
        assert_eq!((params.temperature, params.top_p, params.top_k), (0.6, 0.9, 50));
        let flags = SamplingArgs { top_p: Some(0.5), ..SamplingArgs::default() };
        assert_eq!(flags.params(&defaults, 100).unwrap().top_p, 0.5);
        let greedy = SamplingArgs { temperature: Some(0.0), ..SamplingArgs::default() };
        assert_eq!(greedy.params(&defaults, 100).unwrap(), SamplingParams::default());
    }

    #[test]
    fn a_model_that_does_not_say_is_greedy_until_the_choice_is_narrowed() {
        let silent = GenerationDefaults::default();
        assert!(SamplingArgs::default().params(&silent, 100).unwrap().is_greedy());
        let flags = SamplingArgs { top_k: Some(5), ..SamplingArgs::default() };
        assert_eq!(flags.params(&silent, 100).unwrap().temperature, 1.0);
    }

    #[test]
    fn a_bias_is_an_id_and_a_number() {
        let bias: Bias = "17=-2.5".parse().unwrap();
        assert_eq!((bias.0, bias.1), (17, -2.5));
        assert!("17".parse::<Bias>().is_err() && "x=1".parse::<Bias>().is_err() && "1=x".parse::<Bias>().is_err());
    }
}
