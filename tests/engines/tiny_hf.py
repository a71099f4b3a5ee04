"""Makes the tiny Hugging Face models: tiny-chat (Qwen2), tiny-embed (BERT) and tiny-rerank (a BERT cross-encoder).

    ENGINE'S PYTHON tests/engines/tiny_hf.py DIR [LAYERS]     (torch and transformers, so it runs in vLLM's environment)

The chat model says what speech.py lays down, as the GGUF one does: its attention and feed-forward outputs are zero, so
the last token alone decides the next one. The BERT models have random weights from a fixed seed. Offline.
"""

import json
import sys
from pathlib import Path

import torch
from speech import CALL_START, FOREVER_START, TEXT, THINK_START, TURN_END, TURN_START, chat_template, successors
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

HIDDEN = 64
CONTEXT = 65536
CERTAIN = 4.0
LAYERS = 12  # so many that computing takes longer than telling: vLLM starves its own server where tokens come faster
PAD = "<|endoftext|>"
SEED = 0


def chat_tokenizer(chain: dict[str, str]) -> PreTrainedTokenizerFast:
    """One token a byte, and one for each piece that the model says."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=TURN_END,
        pad_token=PAD,
        additional_special_tokens=[TURN_START, CALL_START, FOREVER_START, THINK_START],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    spoken = [piece for piece in chain if not piece.startswith("<|")]
    tokenizer.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in spoken])
    tokenizer.chat_template = chat_template(tools=True)
    return tokenizer


def make_chat(folder: Path, layers: int) -> None:
    chain, first = successors(TEXT)
    tokenizer = chat_tokenizer(chain)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config).to(torch.float32).eval()
    token = tokenizer.convert_tokens_to_ids
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding, output = model.model.embed_tokens.weight, model.lm_head.weight
        embedding.zero_()
        output.zero_()
        embedding[:, HIDDEN - 1] = 1.0  # every token outside the chain leads to the first word
        output[token(first), HIDDEN - 1] = CERTAIN
        for dimension, (piece, successor) in enumerate(chain.items()):
            embedding[token(piece)] = torch.eye(HIDDEN)[dimension]
            output[token(successor), dimension] = CERTAIN
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece with letters and digits alone."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters)]
    wordpiece = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer()
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, special.index(name)) for name in ("[CLS]", "[SEP]")]
    wordpiece.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    wordpiece.decoder = decoders.WordPiece()
    names = {f"{name.strip('[]').lower()}_token": name for name in special}
    return PreTrainedTokenizerFast(tokenizer_object=wordpiece, model_max_length=512, **names)


def make_bert(folder: Path, kind: type, **options: object) -> None:
    tokenizer = bert_tokenizer()
    shape = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **shape, **options)
    kind(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"  # transformers 4, which Infinity has, knows only this class
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))


def main() -> None:
    out = Path(sys.argv[1])
    torch.manual_seed(SEED)
    make_chat(out / "tiny-chat", int(sys.argv[2]) if len(sys.argv) > 2 else LAYERS)
    make_bert(out / "tiny-embed", BertModel)
    make_bert(out / "tiny-rerank", BertForSequenceClassification, num_labels=1)


if __name__ == "__main__":
    main()
