"""Task names and folders as the benchmarks' authors publish them."""

from __future__ import annotations

VSIBENCH_NUMERIC = frozenset(
    {"object_abs_distance", "object_counting", "object_size_estimation", "room_size_estimation"}
)
VSIBENCH_CHOICE = frozenset(
    {
        "object_rel_direction_easy",
        "object_rel_direction_medium",
        "object_rel_direction_hard",
        "object_rel_distance",
        "route_planning",
        "obj_appearance_order",
    }
)

MVBENCH_TASKS: dict[str, tuple[str, bool]] = {
    "Action Sequence": ("star/Charades_v1_480", True),
    "Action Prediction": ("star/Charades_v1_480", True),
    "Action Antonym": ("ssv2_video", False),
    "Fine-grained Action": ("Moments_in_Time_Raw/videos", False),
    "Unexpected Action": ("FunQA_test/test", False),
    "Object Existence": ("clevrer/video_validation", False),
    "Object Interaction": ("star/Charades_v1_480", True),
    "Object Shuffle": ("perception/videos", False),
    "Moving Direction": ("clevrer/video_validation", False),
    "Action Localization": ("sta/sta_video", True),
    "Scene Transition": ("scene_qa/video", False),
    "Action Count": ("perception/videos", False),
    "Moving Count": ("clevrer/video_validation", False),
    "Moving Attribute": ("clevrer/video_validation", False),
    "State Change": ("perception/videos", False),
    "Fine-grained Pose": ("nturgbd", False),
    "Character Order": ("perception/videos", False),
    "Egocentric Navigation": ("vlnqa", False),
    "Episodic Reasoning": ("tvqa/frames_fps3_hq", True),
    "Counterfactual Inference": ("clevrer/video_validation", False),
}
"""Task -> folder of its videos, and whether its rows carry `start` and `end`. The task's file is its name in small
letters, joined by underscores."""

VIDEOMMMU_DISCIPLINES: dict[str, tuple[str, ...]] = {
    "Art": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities": ("History", "Literature", "Psychology", "Sociology"),
    "Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
"""Discipline, which is also the folder of its videos -> subjects."""
