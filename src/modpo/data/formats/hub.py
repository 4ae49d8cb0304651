"""Where the rows of each format lie: for documentation, and for what an error advises."""

from __future__ import annotations

_QA_FEEDBACK = "train_feedback.json or dev_feedback.json of github.com/allenai/FineGrainedRLHF; they are not on the Hub"

HUB: dict[str, str] = {
    "preference": "prompt, chosen and rejected, as in HuggingFaceH4/ultrafeedback_binarized (split train_prefs)",
    "prompts": "prompts alone, as in PKU-Alignment/BeaverTails-Evaluation (split test)",
    "sharegpt": "ShareGPT preference data, as in llamafactory/DPO-En-Zh-20k (name en)",
    "hh_rlhf": "Anthropic/hh-rlhf (data_dir harmless-base, helpful-base, helpful-online or helpful-rejection-sampled)",
    "pku_saferlhf": "PKU-Alignment/PKU-SafeRLHF (name alpaca-7b, alpaca2-7b or alpaca3-8b: one model's answers)",
    "beavertails": "PKU-Alignment/BeaverTails (split 30k_train or 330k_train)",
    "ultrafeedback": "openbmb/UltraFeedback",
    "helpsteer": "nvidia/HelpSteer or nvidia/HelpSteer2",
    "shp": "stanfordnlp/SHP (data_dir askculinary and so on: one subreddit)",
    "summarize_from_feedback": "openai/summarize_from_feedback (name comparisons, or axis with split validation)",
    "qa_feedback": _QA_FEEDBACK,
    "qa_feedback_spans": _QA_FEEDBACK,
}
