"""The 2021 families that timm lacks, one file each; importing a file registers its names in timm."""
