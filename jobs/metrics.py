"""Which metrics each job kind writes, by name, with one line of meaning; torch-free and pydantic-free.

A sweep's table may only name these, so that a misspelt metric is found before anything is queued.
"""

from __future__ import annotations

from collections.abc import Mapping

NOISE_SD = "_noise_sd"
"""Suffix of a score's standard deviation over the evaluation's noise seeds."""

OF_PARTS: Mapping[str, str] = {
    "eval/fg_nmi": "nmi over the pixels of true parts; of keypoints when only the parts compete for them",
    "eval/foreground_iou": "IoU of all parts together and the object, mean over images",
    "eval/part_miou": "IoU of true parts under one matching with slots for the whole test set, mean over parts, then images",
    "eval/part_miou_by_image": "part_miou with a matching of its own for each image",
    "eval/identity_gap": "part_miou_by_image minus part_miou: what slots that mean other parts in other images cost",
    "eval/parts_used": "parts that own at least 1 % of an image, mean over images",
}
"""Of part models, besides `nmi`, `ari` and `fg_ari`, which they have over all pixels of the test set at once: all these also by
SCOPS' hard background rule, as `<score>_hard`."""

SCORES: Mapping[str, str] = {
    "eval/fg_ari": "adjusted Rand index over foreground pixels, mean over images (of a video: over its frames, then videos)",
    "eval/ari": "adjusted Rand index over all pixels, mean over images (of part models: over the whole test set at once)",
    "eval/mbo": "mean best overlap: per object the best slot's IoU, mean over objects, then images",
    "eval/miou": "IoU under the best one-to-one matching of objects and slots",
    "eval/corloc_mask": "share of images in which some object is found with IoU above 0.5",
    "eval/recovery": "share of an image's objects found with IoU above 0.5, mean over images",
    "eval/stripe": "share of the masks' variance that row or column means explain (degenerate stripes: near 1)",
    "eval/miou_gd": "mIoU as the gorkaydemir code counts it (metrics.md 2): for comparison with its numbers only",
    "eval/mbo_class": "mBO against class masks: instances of one class are one object",
    "eval/miou_class": "mIoU against class masks",
    "eval/miou_gd_class": "miou_gd against class masks",
    "eval/corloc_mask_class": "corloc_mask against class masks",
    "eval/recovery_class": "recovery against class masks",
    "eval/fg_ari_class": "fg_ari against class masks",
    "eval/pair_precision": "share of foreground pixel pairs in one slot that are in one object, mean over images",
    "eval/pair_recall": "share of foreground pixel pairs in one object that are in one slot, mean over images",
    "eval/pair_f1": "harmonic mean of an image's pair precision and recall, mean over images",
    "eval/purity": "accuracy of foreground pixels under the best one-to-one matching of objects and slots",
    "eval/ami": "adjusted mutual information over foreground pixels, mean over images",
    "eval/nmi": "normalised mutual information of foreground pixels, mean over images (part models: all pixels of the test set)",
    "eval/kept_slots": "slots that a gate keeps, mean over images (all of them without a gate)",
    "eval/mse": "mean squared reconstruction error (video models: of images in [-1, 1], as in training)",
    "eval/fg_ari_single_object": "fg_ari over the images with exactly one object (each scores 0 or 1)",
    "eval/fg_ari_multi_object": "fg_ari over the images with two objects or more",
    "eval/fg_ari_attention": "fg_ari of the masks that attention to CLIP's grid of tokens makes (language models)",
    "eval/mbo_attention": "mbo of those masks",
    "eval/miou_attention": "miou of those masks",
    "eval/named_iou": "best slot's IoU of the objects that the sentence names, mean over those that are visible, then images",
    "eval/named_recall": "share of an image's visible named objects found with IoU of at least 0.5, mean over images",
    "eval/unnamed_iou": "named_iou of the objects that the sentence does not name",
    "eval/unnamed_recall": "named_recall of the objects that the sentence does not name",
    "eval/binding_accuracy": "share of images whose source object is best found by the slot that most often finds the source",
    "eval/binding_chance": "1 / number of slots: binding_accuracy when any slot finds the source as often as any other",
    "eval/swap_masks": "half the L1 distance between the masks under the own and another scene's sentence (0: words are ignored)",
    "eval/swap_mse": "mse under another scene's sentence minus mse under the own",
    "eval/swap_named_iou": "named_iou of the own sentence's objects under another scene's sentence",
    "eval/psnr": "peak signal-to-noise ratio of the reconstruction in dB, at most 100, mean over frames, then videos",
    "eval/video_fg_ari": "fg_ari over the pixels of all frames of a video at once, mean over videos",
    "eval/fg_ari_gap": "fg_ari by frame minus video_fg_ari: what slots that change their objects cost",
    "eval/tube_miou": "IoU of masks over whole videos under the best one-to-one matching of objects and slots",
    "eval/tube_mbo": "best overlap of each object's mask over the whole video with any slot's, mean over objects, then videos",
    "eval/id_switches_per_100_frames": "matches with another slot than the object's last per 100 frames of an object, by video",
    "eval/mota": "1 - (misses + false positives + switches) / objects (CLEAR-MOT), mean over videos",
    "eval/motp": "mean IoU of matched objects and slots (CLEAR-MOT), mean over the videos with any",
    "eval/idf1": "F1 of frames under one matching of objects and slots per video, mean over videos",
    "eval/slots_used": "slots that own at least 1 % of a frame, mean over frames, then videos",
    "eval/largest_share": "share of a frame that its largest slot owns, mean over frames, then videos",
    "eval/mask_entropy": "entropy of the masks over log(slots), mean over pixels, frames, videos (0: hard masks)",
    **OF_PARTS,
    **{
        f"eval/{name}_hard": f"{name} by SCOPS' hard background rule"
        for name in ("nmi", "ari", "fg_ari", *(name.removeprefix("eval/") for name in OF_PARTS))
    },
    "eval/mask_vectors": "mask vectors of an image that differ by more than 1e-5 on the model's own grid, mean over images",
    "eval/keypoint_error": "distance of keypoints from a linear map of part centres, in percent of the object's box or the image",
    "eval/landmark_nme": "distance of landmarks from a map of standardised part centres, in percent of the distance of the eyes",
}
"""Scores of an evaluation: each is a mean over noise seeds and has, with several, a `_noise_sd` companion."""

METRICS: Mapping[str, Mapping[str, str]] = {
    "count": {"count/value": "the counting job's state, a chain of hashes over its steps, modulo 1 000 003"},
    "prepare": {"prepare/records": "records written so far"},
    "embed": {
        "embed/images": "images embedded so far (a mirrored copy counts as one)",
        "embed/texts": "sentences embedded so far",
        "embed/images_per_s": "images embedded per second by this attempt, over all ranks",
        "embed/error_floor": "mean squared difference between the tokens and what the stored dtype keeps of them",
    },
    "train": {
        "train/loss": "the whole objective",
        "train/mse": "mean squared reconstruction error of the batch",
        "train/covariance": "covariance term before its weight",
        "train/variance": "variance (standard deviation hinge) term before its weight",
        "train/cosine": "cosine term before its weight",
        "train/contrastive": "contrastive term of sentences and images before its weight, nats",
        "train/text": "squared error of the sentence's feature as predicted from the slots, before its weight",
        "train/names": "cross-entropy of the named colours and shapes as predicted from the slots, before its weight, nats",
        "train/entropy": "entropy of the masks, mean over pixels, before its weight, nats",
        "train/future_masks": "squared error of the next frame's masks as predicted from a frame's, before its weight (clips)",
        "train/future_slots": "squared error of the next frame's slot reconstructions, likewise, before its weight",
        "train/perceptual": "LPIPS between a slot's reconstructions in two frames, before its weight",
        "train/semantic": "squared error of the frozen net's features as parts explain them, before its weight (part models)",
        "train/semantic_energy": "what train/semantic is of parts that explain nothing",
        "train/concentration": "spread of a part's mask about its centre, before its weight",
        "train/equivariance": "KL between masks of a warped image and warped masks, before its weight, nats",
        "train/landmarks": "squared distance of part centres in both, before its weight",
        "train/orthonormality": "squared distance of the normalised basis from orthonormal rows, before its weight",
        "train/compactness": "variance of features within a part, summed over channels, before its weight",
        "train/contrast": "contrastive term of parts across images, before its weight, nats",
        "train/colour_variance": "variance of RGB within a part, summed over channels, before its weight",
        "train/background": "cross-entropy of the background's mask and what is not foreground, before its weight, nats",
        "train/sparsity": "the weighted penalty on kept slots",
        "train/kept_slots": "slots that a gate keeps, mean over the batch",
        "train/keep_probability": "probability of keeping a slot before the gate's noise, mean over slots and batch",
        "train/learning_rate": "learning rate of the step",
        "train/grad_norm": "global gradient norm before clipping",
        "valid/fg_ari": "fg_ari on the validation images",
        "valid/video_fg_ari": "fg_ari over all frames of a video at once, mean over the validation videos",
        "valid/video_fg_ari_fixed": "the same with the checkpoint's noise for every frame, of video models that start from noise",
        "valid/nmi": "normalised mutual information of parts over all pixels of the validation images at once",
        "valid/fg_nmi": "valid/nmi over the pixels of true parts",
        "valid/nmi_hard": "valid/nmi by SCOPS' hard background rule",
        "valid/fg_nmi_hard": "valid/fg_nmi by that rule",
        "valid/mse": "mean squared reconstruction error on the validation images",
    },
    "evaluate": {
        **SCORES,
        **{name + NOISE_SD: f"standard deviation over noise seeds of: {meaning}" for name, meaning in SCORES.items()},
        "eval/images": "number of images scored",
        "eval/fit_images": "number of training images from whose part centres keypoints are regressed",
        "eval/images_without_objects": "number of images without an object under the protocol's masks",
        "eval/videos": "number of videos scored",
        "eval/videos_without_objects": "number of videos without an object in any frame",
    },
}
"""job kind -> metric -> meaning."""
