"""Predict a folder of cases by ``mixmfl_predict`` and by ``nnUNetv2_predict``, in turn.

Both get the same files, plans, patch, step and mirroring, one process to read ahead and one (ours:
a thread) to write. Networks have random weights: nnU-Net's is its plain U-Net with a channel per
modality, ours has encoders for each modality.
"""

import shutil

from side_by_side import (
    DATASET,
    SITE,
    Command,
    Cost,
    median,
    parser,
    script,
    set_up,
    table,
    write_model,
    write_peer_model,
)


def main() -> None:
    """Print a table of both, and how many times faster ours is."""
    made = parser(__doc__)
    made.add_argument("--mirror", action="store_true", help="both average over mirrored patches")
    options = made.parse_args()
    bench = set_up(options)
    model = write_model(bench)
    write_peer_model(bench)
    masks = {name: bench.folder / name for name in ("ours", "theirs")}
    commands: dict[str, Command] = {
        "ours": [
            script("mixmfl_predict"), "-i", bench.federation / SITE, "-o", masks["ours"],
            "-m", model, "--no-report", *(["--mirror"] if options.mirror else []),
        ],
        "theirs": [
            *bench.nnunet("inference.predict_from_raw_data", "predict_entry_point"),
            "-i", bench.peer / "imagesTr", "-o", masks["theirs"], "-d", DATASET, "-p", "plans",
            "-c", bench.configuration, "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1",
            *([] if options.mirror else ["--disable_tta"]),
        ],
    }  # fmt: skip
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(options.repeats):
        for name, command in commands.items():
            shutil.rmtree(masks[name], ignore_errors=True)
            costs[name].append(bench.run(command))
            assert len(list(masks[name].glob("*.nii.gz"))) == len(bench.cases)
    ours, theirs = median(costs["ours"]), median(costs["theirs"])
    mirrored = "mirrored" if options.mirror else "not mirrored"
    print(f"{bench.describe()}; {mirrored}; median of {options.repeats}")
    print(table({"mixmfl_predict": ours, "nnUNetv2_predict": theirs}))
    print(f"CPU time: {theirs.cpu_seconds / ours.cpu_seconds:.2f} times less")
    print(f"memory: {ours.peak_mib / theirs.peak_mib:.2f} of nnU-Net's")
    ratio = theirs.seconds / ours.seconds
    print(f"ratio {ratio:.2f} nnUNetv2_predict's time over mixmfl_predict's, whole commands")


if __name__ == "__main__":
    main()
