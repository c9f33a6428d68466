"""What setup.cfg cannot say: the top-level ``properties`` folder belongs in the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["recbole_idiomoe*"]), "recbole_idiomoe.properties"],
    package_dir={"recbole_idiomoe.properties": "properties"},
)
