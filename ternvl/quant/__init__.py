"""Quantisation: conversion with a guard, the converted file, calibration samples and the comparison of models."""
