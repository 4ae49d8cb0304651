"""What the model card of a trained policy cites."""

from __future__ import annotations

PAPER = {
    "title": "Beyond One-Preference-Fits-All Alignment: Multi-Objective Direct Preference Optimization",
    "id": "2310.03708",
    "citation": """\
@inproceedings{zhou2024beyond,
    title        = {{Beyond One-Preference-Fits-All Alignment: Multi-Objective Direct Preference Optimization}},
    author       = {Zhanhui Zhou and Jie Liu and Jing Shao and Xiangyu Yue and Chao Yang and Wanli Ouyang and Yu Qiao},
    year         = 2024,
    booktitle    = {Findings of the Association for Computational Linguistics: ACL 2024},
    pages        = {10586--10613},
    publisher    = {Association for Computational Linguistics},
    doi          = {10.18653/v1/2024.findings-acl.630},
    url          = {https://aclanthology.org/2024.findings-acl.630},
    eprint       = {2310.03708},
    archiveprefix = {arXiv},
}""",
}
