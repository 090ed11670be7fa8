//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes.

use njoule_models::chat::ChatInput;
use serde_json::json;

use crate::app::App;
use crate::chat::messages;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::model::Model;
use crate::respond::Reply;
use crate::tools::Tools;

/// Text or messages to ids.
pub fn tokenize(_app: &App, model: &Model, mut fields: Fields) -> Result<Reply, ApiError> {
    model.check_name(fields.string("model")?.as_deref())?;
    let strings = fields.flag("return_token_strs")?;
    let add_special = fields.boolean("add_special_tokens")?;
    // What is of messages alone is read beside a prompt too: a wrong value is wrong there as well.
    let tools = Tools::take(&mut fields)?;
    let add_generation_prompt = fields.boolean("add_generation_prompt")?.unwrap_or(true);
    let continue_final_message = fields.flag("continue_final_message")?;
    let ids = match (fields.string("prompt")?, fields.take("messages")) {
        (Some(_), Some(_)) => return Err(ApiError::value("prompt", "give a prompt or messages, not both")),
        (None, None) => return Err(ApiError::value("prompt", "a prompt or messages are needed")),
        (Some(prompt), None) => model.encode(&prompt, add_special.unwrap_or(true))?,
        (None, Some(given)) => {
            let input = ChatInput {
                tools: tools.shown(),
                add_generation_prompt,
                continue_final_message,
                ..ChatInput::new(messages::read(given)?)
            };
            let mut ids = if add_special == Some(true) { model.encode("", true)? } else { Vec::new() };
            ids.extend(model.encode_chat(None, &input, usize::MAX)?);
            ids
        }
    };
    let mut answer = json!({"count": ids.len(), "max_model_len": model.max_len, "tokens": ids});
    if strings {
        let text = |id: &u32| model.tokenizer().token_text(*id).unwrap_or_default().to_owned();
        answer["token_strs"] = ids.iter().map(text).collect();
    }
    Ok(Reply::json(&answer))
}

/// Ids to text.
pub fn detokenize(model: &Model, mut fields: Fields) -> Result<Reply, ApiError> {
    model.check_name(fields.string("model")?.as_deref())?;
    let ids = fields.token_ids("tokens", MAX_IDS, model.vocab())?;
    let ids = ids.ok_or_else(|| ApiError::value("tokens", "tokens are needed"))?;
    Ok(Reply::json(&json!({"prompt": model.tokenizer().decode(&ids, false)})))
}

/// Ids of a request.
pub const MAX_IDS: usize = 1 << 20;
