"""Predict a folder of cases by ``mixmfl_predict`` and by ``nnUNetv2_predict``, in turn.

``mixmfl_predict`` runs with its own distance of patches, with nnU-Net's, and with ``--fast``. All
get the same files, plans, patch and mirroring, one process to read ahead and one (ours: a thread)
to write. With ``--as-they-come`` each has its own defaults: nnU-Net mirrors, in up to eight passes,
and has three processes to read and three to write. Networks have random weights: nnU-Net's is its
plain U-Net with a channel per modality, ours has encoders for each modality.
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

PEER = "nnUNetv2_predict"


def main() -> None:
    """Print a table of all, and how many times faster ours are."""
    made = parser(__doc__)
    which = made.add_mutually_exclusive_group()
    which.add_argument("--mirror", action="store_true", help="all average over mirrored patches")
    which.add_argument("--as-they-come", action="store_true", help="each with its own defaults")
    options = made.parse_args()
    bench = set_up(options)
    model = write_model(bench)
    write_peer_model(bench)
    ways = {
        "mixmfl_predict": [],
        "mixmfl_predict --step 0.5": ["--step", "0.5"],
        "mixmfl_predict --fast": ["--fast"],
    }
    masks = {name: bench.folder / name for name in (*ways, PEER)}
    alike = ["-npp", "1", "-nps", "1", *([] if options.mirror else ["--disable_tta"])]
    commands: dict[str, Command] = {
        **{
            name: [
                script("mixmfl_predict"), "-i", bench.federation / SITE, "-o", masks[name],
                "-m", model, "--no-report", *(["--mirror"] if options.mirror else []), *way,
            ]
            for name, way in ways.items()
        },
        PEER: [
            *bench.nnunet("inference.predict_from_raw_data", "predict_entry_point"),
            "-i", bench.peer / "imagesTr", "-o", masks[PEER], "-d", DATASET, "-p", "plans",
            "-c", bench.configuration, "-f", "0", "-device", "cpu",
            *([] if options.as_they_come else alike),
        ],
    }  # fmt: skip
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(options.repeats):
        for name, command in commands.items():
            shutil.rmtree(masks[name], ignore_errors=True)
            costs[name].append(bench.run(command))
            assert len(list(masks[name].glob("*.nii.gz"))) == len(bench.cases)
    medians = {name: median(each) for name, each in costs.items()}
    theirs = medians[PEER]
    alike_in = "mirrored" if options.mirror else "not mirrored"
    how = "each as it comes" if options.as_they_come else alike_in
    print(f"{bench.describe()}; {how}; median of {options.repeats}")
    print(table(medians))
    for name in ways:
        ours = medians[name]
        print(f"{name}: CPU time {theirs.cpu_seconds / ours.cpu_seconds:.2f} times less")
        print(f"{name}: memory {ours.peak_mib / theirs.peak_mib:.2f} of nnU-Net's")
        ratio = theirs.seconds / ours.seconds
        print(f"ratio {ratio:.2f} {PEER}'s time over that of {name}, whole commands")


if __name__ == "__main__":
    main()
